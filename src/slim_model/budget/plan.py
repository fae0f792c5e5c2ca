"""Scores -> channels to keep, for a ratio, the fraction of channels removed. Other limits: ``allocate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slim_model.coupling.coupling import Coupling, Group
from slim_model.cutting.cut import cut_of
from slim_model.errors import BudgetError
from slim_model.labels.values import Value, tensors_in

FLOOR = 0.1
"""A ranking over many groups leaves each at least this share of its channels."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``keep``: bool by component number; ``widths``: for each group (before, after)."""

    keep: np.ndarray
    widths: tuple[tuple[int, int], ...]


def check_any(coupling: Coupling) -> None:
    if not any(group.width > 1 for group in coupling.groups):
        lines = [f"{p.name}: {p.why} ({p.op or 'you'} {p.where})".replace(" )", ")") for p in coupling.pinned[:5]]
        raise BudgetError("nothing can be removed from this model: every channel is pinned. " + "; ".join(lines))


def ranks_of(scores: Sequence[Tensor]) -> list[np.ndarray]:
    """The numbers of each group's channels, best first."""
    return [torch.sort(score, descending=True, stable=True).indices.numpy() for score in scores]


def best_first(coupling: Coupling, scores: list[Tensor]) -> list[np.ndarray]:
    """The channels of each group by component number."""
    return [group.channels[rank] for group, rank in zip(coupling.groups, ranks_of(scores), strict=True)]


def least_of(
    coupling: Coupling, scores: list[Tensor], of: Callable[[np.ndarray], float], multiple_of: int = 1
) -> np.ndarray:
    """bool by component: the best channel of each group, or where that costs less the best block (a width that does not
    suit the machine may take longer than a wider one); and what no axis can lack."""
    orders = best_first(coupling, scores)
    blocks = tuple(min(group.width, block_of(group, multiple_of)) for group in coupling.groups)
    plans = (keep_best(coupling, orders, counts) for counts in dict.fromkeys(((1,) * len(orders), blocks)))
    return min((refill_empty_axes(coupling, plan, scores) for plan in plans), key=of)


def keep_best(coupling: Coupling, orders: list[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    """bool by component: the first ``counts[i]`` channels of group i, and whatever is in no group."""
    keep = coupling.keep_all()
    for order, count in zip(orders, counts, strict=True):
        keep[order[count:]] = False
    return keep


def plan_of(coupling: Coupling, keep: np.ndarray) -> Plan:
    return Plan(keep, tuple((group.width, int(keep[group.channels].sum())) for group in coupling.groups))


def count_lowest(worth: Sequence[np.ndarray], count: int) -> list[int]:
    """How many of the ``count`` lowest of all are in each: ``([1, 4], [2, 3]), 3 -> [1, 2]``."""
    owner = np.concatenate([np.full(len(w), i) for i, w in enumerate(worth)])
    place = np.concatenate([np.arange(len(w)) / len(w) for w in worth])
    order = np.lexsort((place, np.concatenate(worth)))
    return np.bincount(owner[order[:count]], minlength=len(worth)).tolist()


def rungs_of(group: Group, multiple_of: int) -> list[int]:
    """The numbers of channels a group may be left with, rising: those whose layer width (channels x span) is a multiple
    of the block; of narrower ones powers of two, so that 8 of 16 channels stay 8 when the block is 16; and all."""
    counts = {1, group.width}
    block = multiple_of
    while block >= 1:
        step = block_of(group, block)
        widest = group.width if block == multiple_of else min(group.width, (2 * block - 1) // group.span)
        counts.update(range(step, widest + 1, step))
        block //= 2
    return sorted(int(count) for count in counts)


def block_of(group: Group, block: int) -> int:
    """The fewest channels whose layer width is a multiple of the block."""
    return block // int(np.gcd(block, group.span))


def refill_empty_axes(coupling: Coupling, keep: np.ndarray, scores: list[Tensor]) -> np.ndarray:
    """``keep`` with the best channel given back of any axis that would be left empty."""
    rank, keep = np.full(len(keep), -np.inf), keep.copy()
    for group, score in zip(coupling.groups, scores, strict=True):
        rank[group.channels] = score.numpy()
    cut = cut_of(coupling, keep)
    seen: set[int] = set()
    for value in tensors_in(coupling.labelled.values.values()):
        for axis in _new_axes(value, seen):
            if cut.count(axis) == 0:
                channels = coupling.component[axis.numpy()]
                keep[channels[int(np.argmax(rank[channels]))]] = True
                cut = cut_of(coupling, keep)
    return keep


def _new_axes(value: Value, seen: set[int]) -> list[Tensor]:
    axes = [axis for axis in value.axes if axis is not None and id(axis) not in seen]
    seen.update(map(id, axes))
    return axes
