"""A convolution as one of each input alone, then 1x1."""

from __future__ import annotations

from slim_model.factoring.layers import Layer
from slim_model.factoring.principal import part, precision, principal_axes
from slim_model.factoring.split import Split, pointwise_options
from slim_model.ranking.evidence.moments import Covariances


def split_each_input(layer: Layer, moments: Covariances | None) -> Split:
    """k x k as a depthwise convolution that makes t terms of each input, then 1x1 (network decoupling: Guo, Li, Lin,
    Chen, Li, Network Decoupling: From Regular to Depthwise Separable Convolutions, BMVC 2018).

    The kernels that one input has, a map from its patch to every output, lie along the principal axes of what they
    give: with S the covariance of the patch, U are the eigenvectors of W S W', the terms are U' W and the 1x1 reads
    them by U. Inputs count as if they were independent. Rank t is term t of every input, so that the depthwise
    convolution is a plain one. ``moments``: of the patches ``(input, tap)``.

    Two inputs with the kernels ``[3, 0]`` and ``[0, 1]``, of one output: a term each carries all, and the shares are
    ``[1]``.
    """
    weight = layer.matrix
    outputs, inputs, *kernel = weight.shape
    of_each = weight.flatten(2).transpose(0, 1).to(precision(weight))
    axes = principal_axes(of_each, of_inputs=None if moments is None else (moments.scatter / moments.count).to(of_each))
    depthwise = axes.first.reshape(-1, 1, *kernel)
    across = axes.second.transpose(0, 1).reshape(outputs, -1, *[1] * len(kernel))
    return Split(
        (
            part(depthwise, None, weight, layer.options | {"groups": inputs}),
            part(across, layer.constant, weight, pointwise_options(layer.options)),
        ),
        (axes.lost.sum(0),),
    )
