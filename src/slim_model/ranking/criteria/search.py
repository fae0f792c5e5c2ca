"""Criteria that try: they remove channels, where they are read, and measure the loss on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.ranking.criteria.slices import Slices


def oracle(slices: Slices, *, form: str = "abs") -> Tensor:
    """Change of the loss when one channel is removed: one run over the data for each channel.

    Molchanov 2017 (as taylor), section 2.2: ``s_c = |L(without c) - L|``; ``form=signed`` leaves out the absolute
    value. Losses ``[1.2, 0.7]`` without each, from 1, score ``[0.2, 0.3]``, signed ``[0.2, -0.3]``.
    """
    if form not in ("abs", "signed"):
        raise InputError(f"oracle:form={form} is unknown; it is abs or signed.")
    assert slices.losses is not None
    none = torch.zeros(1, slices.width, dtype=torch.bool)
    losses = slices.losses(torch.cat([none, torch.eye(slices.width, dtype=torch.bool)]))
    change = losses[1:] - losses[0]
    return change.abs() if form == "abs" else change


def random_mask(slices: Slices, *, masks: int = 32, remove: float = 0.5) -> Tensor:
    """The least harmful of ``masks`` random masks: what it keeps ranks above what it removes.

    Anwar, Sung, Compact Deep Convolutional Neural Networks With Coarse Pruning, 2016, section 3: draw N masks, each of
    which removes the fraction ``remove`` (give that of --ratio) of a layer, measure, keep the best. Within both parts
    channels are ranked by ``mean(loss | c removed) - mean(loss | c kept)`` over all masks. Masks 01, 10 with losses
    2, 1 keep channel 1 (the best mask is 10, which keeps it): it scores above 1, channel 2 below 0.
    """
    if masks < 1 or not 0 < remove < 1:
        raise InputError(f"random-mask: masks={masks} must be at least 1, and remove={remove} between 0 and 1.")
    assert slices.losses is not None
    gone = max(1, min(slices.width - 1, round(slices.width * remove)))
    drawn = torch.rand(masks, slices.width, generator=slices.generator).argsort(1)
    removed = torch.zeros(masks, slices.width, dtype=torch.bool).scatter_(1, drawn[:, :gone], True)
    losses = slices.losses(removed)
    without = (losses[:, None] * removed).sum(0) / removed.sum(0)
    beside = (losses[:, None] * ~removed).sum(0) / (~removed).sum(0)
    harm = torch.where(removed.any(0) & ~removed.all(0), without - beside, 0.0)
    spread = (harm.amax() - harm.amin()).clamp(min=1e-300)
    kept = ~removed[int(losses.argmin())]
    return (harm - harm.amin()) / spread + torch.where(kept, 1.0, -1.0)
