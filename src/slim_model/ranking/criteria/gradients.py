"""Criteria that ask how the loss answers to a channel: derivatives with respect to a gate that stands at 1 wherever
the channel is read (``evidence.gate_gradients``). For one sample, ``t_c = sum over places of x_c dL/dx_c``, signed."""

from __future__ import annotations

from torch import Tensor

from slim_model.errors import InputError
from slim_model.ranking.criteria.slices import Slices


def taylor(slices: Slices, *, form: str = "abs", normalise: bool = False) -> Tensor:
    """First-order estimate of how much the loss changes when a channel goes.

    Molchanov, Tyree, Karras, Aila, Kautz, ICLR 2017, equation 8: ``s_c = E_samples |t_c|`` (there divided by the number
    of positions, the same for all channels of a layer; ``normalise`` divides by the layer's Euclidean norm, their
    section 2.4). ``form=squared``: ``E t_c^2`` for each sample, the gate of Molchanov, Mallya, Tyree, Frosio, Kautz,
    CVPR 2019. Of two samples with ``t = 1, -3``: 2 and 5. Signed sums over samples would vanish at a minimum.
    """
    gates = slices.evidence.gates
    if form not in ("abs", "squared"):
        raise InputError(f"taylor:form={form} is unknown; it is abs or squared.")
    assert gates is not None
    score = (gates.absolute if form == "abs" else gates.squared) / gates.count
    return score / score.norm().clamp(min=1e-300) if normalise else score


def fisher(slices: Slices) -> Tensor:
    """Half the empirical Fisher information of a gate: the loss's second-order increase near a minimum.

    Theis, Korshunova, Tejani, Huszar, Faster gaze prediction with dense networks and Fisher pruning, 2018, equation 4:
    ``s_c = sum_i t_ic^2 / (2 N)``; coupled members add up signed, for each sample, before the square (Liu et al.,
    Group Fisher Pruning, ICML 2021). Two samples with ``t = 1, -3`` score 2.5.
    """
    gates = slices.evidence.gates
    assert gates is not None
    return gates.squared / (2 * gates.count)


def hessian(slices: Slices, *, form: str = "diagonal") -> Tensor:
    """Second derivative of the mean loss with respect to a gate.

    LeCun, Denker, Solla, Optimal Brain Damage, NeurIPS 1989, equation 5: ``s_c = H_cc / 2``, with the diagonal by
    Hutchinson's estimate from products with random signs. ``form=leading``: the channel's share ``|e| u_c^2`` in the
    eigenvalue e of largest size, with eigenvector u, of the Hessian over all gates of the model. Exact for models of
    at most 16 channels. ``H = [[2, 0], [0, 4]]`` scores ``[1, 2]``, and by leading ``[0, 4]``.
    """
    curvature = slices.evidence.curvature
    assert curvature is not None
    if form == "diagonal":
        return curvature.diagonal() / 2
    if form != "leading":
        raise InputError(f"hessian:form={form} is unknown; it is diagonal or leading.")
    value, vector = curvature.leading()
    return value.abs() * vector.square()
