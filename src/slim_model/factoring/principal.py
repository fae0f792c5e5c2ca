"""A linear map as two in a row, whose inner axis is sorted by what it carries."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from slim_model.factoring.layers import Layer
from slim_model.factoring.split import Part, Split, pointwise_options
from slim_model.ranking.evidence.moments import Covariances

_LARGE = 2**23
"""Values of a weight beyond which float32 has to do: orthogonal matrices lose little in it."""


class Axes(NamedTuple):
    """``second @ first`` is the map ``(outputs, inputs)``; ``lost``: the share of the spread of what it gives that goes
    with each inner position, largest first. Of several maps each has a leading axis for them, and shares are those of
    the spread of all."""

    first: Tensor
    second: Tensor
    lost: Tensor


def split_by_outputs(layer: Layer, moments: Covariances | None) -> Split:
    """``W x + b`` as ``B (A x + a) + c``, where the rows of A are the principal axes of the layer's outputs.

    With S the covariance of what the layer reads, C = W S W' is that of its outputs; U are its eigenvectors, the one
    of the largest eigenvalue first; A = U' W, B = U. The first r are the rank r that leaves least of
    ``|(W - B A) S^1/2|``: a singular value decomposition in the metric of the inputs (of k x k kernels: Zhang, Zou, He,
    Sun, Accelerating Very Deep Convolutional Networks, TPAMI 2016, section 3.1). The mean m of the outputs is taken out
    of the inner axis, ``a = -U' m``, ``c = b + m``, so that what goes costs its spread alone. Without data S is the
    identity: a plain SVD. Where there are fewer inputs than outputs, U spans what W does.

    ``W = [[3, 0], [0, 1]]`` without data: U = 1, A = W; the shares are ``[0.9, 0.1]``. ``moments``: of the outputs.
    """
    weight = layer.matrix
    flat = weight.flatten(1).to(precision(weight))
    axes = principal_axes(flat, of_outputs=None if moments is None else (moments.scatter / moments.count).to(flat))
    # The constants: nothing changes in what the layer gives, and the inner axis is about zero.
    inner, outer = None, layer.constant
    if moments is not None:
        own = flat.new_zeros(len(flat)) if layer.constant is None else layer.constant.to(flat)
        inner = axes.second.T @ (moments.mean.to(flat) - own)
        outer = own + axes.second @ inner
    second = axes.second.reshape(*axes.second.shape, *[1] * (weight.dim() - 2))
    return Split(
        (
            part(axes.first.unflatten(1, weight.shape[1:]), None if inner is None else -inner, weight, layer.options),
            part(second, outer, weight, pointwise_options(layer.options)),
        ),
        (axes.lost,),
    )


def principal_axes(flat: Tensor, *, of_outputs: Tensor | None = None, of_inputs: Tensor | None = None) -> Axes:
    """The map ``flat (outputs, inputs)`` along the principal axes of what it gives, or each of several maps. The
    covariance of that is ``of_outputs``, or follows from that of the inputs; without either these are all alike."""
    # An orthonormal basis of what it can give, in which outputs have as many numbers as there are ranks.
    basis, inside = torch.linalg.qr(flat) if flat.shape[-2] > flat.shape[-1] else (None, flat)
    if of_outputs is None:
        spread = inside @ inside.mT if of_inputs is None else inside @ of_inputs @ inside.mT
    else:
        spread = of_outputs if basis is None else basis.mT @ of_outputs @ basis
    values, vectors = torch.linalg.eigh(spread)
    vectors = vectors.flip(-1)
    # What is below 0 by rounding is nothing.
    positive = values.flip(-1).double().clamp(min=0)
    second = vectors if basis is None else basis @ vectors
    return Axes(vectors.mT @ inside, second, positive / positive.sum().clamp(min=1e-300))


def precision(weight: Tensor) -> torch.dtype:
    """In which it is decomposed."""
    return torch.float32 if weight.numel() > _LARGE else torch.float64


def part(weight: Tensor, bias: Tensor | None, like: Tensor, options: dict[str, Any]) -> Part:
    """The layer with these values, stored as ``like`` is."""
    return Part(weight.to(like).contiguous(), None if bias is None else bias.to(like).contiguous(), options)
