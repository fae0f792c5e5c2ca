"""A reading layer that lost inputs -> the weights that make up best for them, by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_model.ranking.evidence.moments import Covariances, Variances

RIDGE = 1e-3
"""Relative to the mean of the kept inputs' second moments."""


def refit(
    weight: Tensor, bias: Tensor | None, kept: Tensor, moments: Covariances | Variances, *, slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """``(output, kept)`` and the bias, from the dense ``weight (output, input)`` and what the inputs were on data.

    With S the covariance of the inputs, K kept and P removed: ``W_K + W_P A``, ``A = S_PK (S_KK + l I)^-1``, and the
    bias takes ``W_P (m_P - A m_K)`` (the recovery of FLAP, An et al. 2024, where A is 0: without ``slopes``). Where the
    layer has no bias S are the second moments: the fit goes through the origin. Two equal inputs with weights 1 and 2,
    of which one goes: the other has 3.
    """
    dense = weight.double()
    gone = torch.ones(dense.shape[1], dtype=torch.bool)
    gone[kept] = False
    mean, lost = moments.mean.double(), dense[:, gone]
    result, guess = dense[:, kept], torch.zeros_like(mean[gone])
    if slopes and isinstance(moments, Covariances):
        spread = moments.scatter / moments.count
        if bias is None:
            spread = spread + mean[:, None] * mean
        among = spread[kept][:, kept]
        among.diagonal().add_(RIDGE * among.diagonal().mean() + 1e-300)
        slope = torch.linalg.solve(among, spread[kept][:, gone]).T
        result, guess = result + lost @ slope, slope @ mean[kept]
    if bias is not None:
        bias = (bias.double() + lost @ (mean[gone] - guess)).to(bias.dtype)
    return result.to(weight.dtype), bias


def rescale(weight: Tensor, kept: Tensor, moments: Covariances) -> float:
    """The factor ``f`` for which ``f W_K z`` is nearest to ``W (d + z)``, of ``weight (output, input)`` W that cannot
    be refitted; ``moments`` are those of d, of all inputs, and of z, of the ``kept``, side by side. Where z is half of
    what all inputs were, d is as much, and f is 2."""
    spread = moments.scatter / moments.count + moments.mean[:, None] * moments.mean
    of_d = weight.shape[1]
    products = weight[:, kept].double().T @ weight.double()
    lost = (products * spread[of_d:, :of_d]).sum()
    return float(1 + lost / (products[:, kept] * spread[of_d:, of_d:]).sum())
