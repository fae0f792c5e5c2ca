"""budget: scores -> which channels to keep. The only stage that knows "ratio": the fraction of channels removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slim_model.couple import Coupling
from slim_model.errors import BudgetError
from slim_model.labels import Value, tensors_in
from slim_model.shrink import cut_of

SCOPES = ("local", "global")
_GLOBAL_FLOOR = 0.1  # a global ranking leaves each group at least this share of its channels


@dataclass(frozen=True, slots=True)
class Plan:
    """``keep``: bool by component number; ``widths``: for each group (before, after)."""

    keep: np.ndarray
    widths: tuple[tuple[int, int], ...]


def budget(
    coupling: Coupling,
    scores: list[Tensor],
    *,
    ratio: float | Sequence[float],
    scope: str = "local",
    multiple_of: int = 1,
) -> Plan:
    """Keep the best of each group. ``ratio``: one for all groups, or one for each. ``multiple_of`` rounds layer widths
    to the machine's block (see ``_rounded``)."""
    ratios = [ratio] * len(coupling.groups) if isinstance(ratio, float) else list(ratio)
    if not any(group.width > 1 for group in coupling.groups):
        raise BudgetError("nothing can be removed from this model: every channel is pinned. " + _reasons(coupling))
    targets = _local(coupling, ratios) if scope == "local" else _global(coupling, scores, ratios)
    keep = np.zeros(coupling.component.max() + 1, bool)
    keep[0] = True
    known = np.concatenate([group.channels for group in coupling.groups])
    keep[np.setdiff1d(np.arange(len(keep)), known)] = True
    for group, target, score in zip(coupling.groups, targets, scores, strict=True):
        count = _rounded(target, group.width, group.span, multiple_of)
        order = torch.sort(score, descending=True, stable=True).indices.numpy()
        keep[group.channels[order[:count]]] = True
    _refill(coupling, keep, scores)
    widths = tuple((group.width, int(keep[group.channels].sum())) for group in coupling.groups)
    if all(before == after for before, after in widths):
        raise BudgetError(
            f"ratio {max(ratios):g} removes no channel: the layers are too narrow for it"
            + (f" when widths are rounded to {multiple_of}; try --multiple-of 1." if multiple_of > 1 else ".")
        )
    return Plan(keep, widths)


def _local(coupling: Coupling, ratios: list[float]) -> list[float]:
    return [group.width * (1 - ratio) for group, ratio in zip(coupling.groups, ratios, strict=True)]


def _global(coupling: Coupling, scores: list[Tensor], ratios: list[float]) -> list[float]:
    """One ranking over all groups that lose some; scores are divided by their group's mean size so that groups compare.
    Equal scores are taken from all groups alike."""
    chosen = [i for i, ratio in enumerate(ratios) if ratio > 0]
    relative = [scores[i] / scores[i].abs().mean().clamp(min=1e-30) for i in chosen]
    owner = torch.cat([torch.full((len(scores[i]),), i) for i in chosen])
    place = torch.cat([torch.arange(len(scores[i])) / len(scores[i]) for i in chosen])
    order = np.lexsort((place.numpy(), torch.cat(relative).numpy()))
    count = int(sum(coupling.groups[i].width * ratios[i] for i in chosen) + 1e-6)
    removed = torch.bincount(owner[order[:count]], minlength=len(scores)).tolist()
    return [
        max(1.0, group.width * _GLOBAL_FLOOR, group.width - gone)
        for group, gone in zip(coupling.groups, removed, strict=True)
    ]


def _rounded(target: float, width: int, span: int, multiple_of: int) -> int:
    """The number of channels nearest to ``target`` whose layer width (channels x span) is a multiple of the block.

    A layer that would be narrower than the block is rounded to the largest power of two that fits instead: 8 of 16
    channels stay 8 when the block is 16.
    """
    block = multiple_of
    while block > 1 and target * span < block:
        block //= 2
    step = block // np.gcd(block, span)
    count = min(width, max(1, round(target / step)) * step)
    return width if abs(width - target) < abs(count - target) else int(count)


def _refill(coupling: Coupling, keep: np.ndarray, scores: list[Tensor]) -> None:
    """Give back the best channel of any axis that would be left empty."""
    rank = np.full(len(keep), -np.inf)
    for group, score in zip(coupling.groups, scores, strict=True):
        rank[group.channels] = score.numpy()
    cut = cut_of(coupling, keep)
    seen: set[int] = set()
    for value in tensors_in(coupling.walk.values.values()):
        for axis in _new_axes(value, seen):
            if cut.count(axis) == 0:
                channels = coupling.component[axis.numpy()]
                keep[channels[int(np.argmax(rank[channels]))]] = True
                cut = cut_of(coupling, keep)


def _new_axes(value: Value, seen: set[int]) -> list[Tensor]:
    axes = [axis for axis in value.axes if axis is not None and id(axis) not in seen]
    seen.update(map(id, axes))
    return axes


def _reasons(coupling: Coupling) -> str:
    lines = [f"{p.name}: {p.why} ({p.op or 'you'} {p.where})".replace(" )", ")") for p in coupling.pinned[:5]]
    return "; ".join(lines)
