"""A layer as itself with other outputs, then a linear map of these: both sorted by what an output carries."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_model.factoring.layers import Layer
from slim_model.factoring.split import Part, Split, pointwise_options
from slim_model.ranking.evidence.moments import Covariances

_LARGE = 2**23
"""Values of a weight beyond which float32 has to do: orthogonal matrices lose little in it."""


def split_by_outputs(layer: Layer, moments: Covariances | None) -> Split:
    """``W x + b`` as ``B (A x + a) + c``, where the rows of A are the principal axes of the layer's outputs.

    With S the covariance of what the layer reads, C = W S W' is that of its outputs; U are its eigenvectors, the one
    of the largest eigenvalue first; A = U' W, B = U. The first r are the rank r that leaves least of
    ``|(W - B A) S^1/2|``: a singular value decomposition in the metric of the inputs (of k x k kernels: Zhang, Zou, He,
    Sun, Accelerating Very Deep Convolutional Networks, TPAMI 2016, section 3.1). The mean m of the outputs is taken out
    of the inner axis, ``a = -U' m``, ``c = b + m``, so that what goes costs its spread alone. Without data S is the
    identity: a plain SVD. Where there are fewer inputs than outputs, U spans what W does.

    ``W = [[3, 0], [0, 1]]`` without data: U = 1, A = W; the shares are ``[0.9, 0.1]``.
    """
    weight = layer.matrix
    flat = weight.flatten(1).to(torch.float32 if weight.numel() > _LARGE else torch.float64)
    # An orthonormal basis of what the layer can give, in which its outputs have as many numbers as there are ranks.
    basis, inside = torch.linalg.qr(flat) if flat.shape[0] > flat.shape[1] else (None, flat)
    # Their covariance there, from data or as of inputs that are all alike.
    spread, mean = inside @ inside.T, None
    if moments is not None:
        spread, mean = (moments.scatter / moments.count).to(flat), moments.mean.to(flat)
        if basis is not None:
            spread = basis.T @ spread @ basis
    values, vectors = torch.linalg.eigh(spread)
    values, vectors = values.flip(0), vectors.flip(1)
    second, first = vectors if basis is None else basis @ vectors, vectors.T @ inside
    # The constants: nothing changes in what the layer gives, and the inner axis is about zero.
    inner, outer = None, layer.constant
    if mean is not None:
        mean = mean if layer.constant is None else mean - layer.constant.to(flat)
        inner = second.T @ mean
        outer = second @ inner if layer.constant is None else layer.constant.to(flat) + second @ inner
    return Split(
        (
            _part(first.unflatten(1, weight.shape[1:]), None if inner is None else -inner, weight, layer.options),
            _part(
                second.reshape(*second.shape, *[1] * (weight.dim() - 2)),
                outer,
                weight,
                pointwise_options(layer.options),
            ),
        ),
        (shares_of(values),),
    )


def _part(weight: Tensor, bias: Tensor | None, like: Tensor, options: dict[str, object]) -> Part:
    return Part(weight.to(like).contiguous(), None if bias is None else bias.to(like).contiguous(), options)


def shares_of(values: Tensor) -> Tensor:
    """Of each to the sum of all, float64; what is below 0 by rounding is nothing."""
    positive = values.double().clamp(min=0)
    return positive / positive.sum().clamp(min=1e-300)
