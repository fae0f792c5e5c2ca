"""Scores -> channels to keep, for a ratio, the fraction of channels removed. Other limits: ``allocate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slim_model.coupling.coupling import Coupling, Group
from slim_model.cutting.cut import cut_of
from slim_model.errors import BudgetError
from slim_model.labels.values import Value, tensors_in
from slim_model.ops import kind_of

FLOOR = 0.1
"""A ranking over many groups leaves each at least this share of its channels."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``keep``: bool by component number; ``widths``: for each group (before, after). ``silent``: numbers of groups
    that nothing reads any more. Each keeps a channel, since no layer can be without, and that is read with weights of
    zero."""

    keep: np.ndarray
    widths: tuple[tuple[int, int], ...]
    silent: tuple[int, ...] = ()

    def counted(self, coupling: Coupling) -> np.ndarray:
        """bool by component: the channels that cost something."""
        return without(coupling, self.keep, self.silent)


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


def plan_of(coupling: Coupling, keep: np.ndarray, silent: Sequence[int] = ()) -> Plan:
    widths = tuple((group.width, int(keep[group.channels].sum())) for group in coupling.groups)
    return Plan(keep, widths, tuple(sorted(silent)))


def silenced(coupling: Coupling, keep: np.ndarray, scores: Sequence[Tensor], groups: Sequence[int]) -> Plan:
    """The plan ``keep``, with of each of these groups the best channel alone, which nothing reads."""
    left = without(coupling, keep, groups)
    for number in groups:
        left[coupling.groups[number].channels[int(torch.argmax(scores[number]))]] = True
    return plan_of(coupling, left, groups)


def without(coupling: Coupling, keep: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """``keep`` less all channels of these groups."""
    left = keep.copy()
    for number in groups:
        left[coupling.groups[number].channels] = False
    return left


def count_lowest(worth: Sequence[np.ndarray], count: int) -> list[int]:
    """How many of the ``count`` lowest of all are in each: ``([1, 4], [2, 3]), 3 -> [1, 2]``."""
    owner = np.concatenate([np.full(len(w), i) for i, w in enumerate(worth)])
    place = np.concatenate([np.arange(len(w)) / len(w) for w in worth])
    order = np.lexsort((place, np.concatenate(worth)))
    return np.bincount(owner[order[:count]], minlength=len(worth)).tolist()


def rungs_of(group: Group, multiple_of: int) -> list[int]:
    """The numbers of channels a group may be left with, rising: those whose layer width (channels x span) is a multiple
    of the block; below the least of these, multiples of half the block, then of a quarter, so that 8 of 16 channels
    stay 8 when the block is 16, and 4 of 8 units of a GRU, whose width is 24, stay 4 when it is 8; and all."""
    counts = {1, group.width}
    block, below = multiple_of, group.width + 1
    while block >= 1:
        step = block_of(group, block)
        counts.update(range(step, below, step))
        block, below = block // 2, min(below, step)
    return sorted(int(count) for count in counts)


def block_of(group: Group, block: int) -> int:
    """The fewest channels whose layer width is a multiple of the block."""
    return block // int(np.gcd(block, group.span))


def refill_empty_axes(coupling: Coupling, keep: np.ndarray, scores: list[Tensor]) -> np.ndarray:
    """``keep`` with the best channel given back of any axis that would be left empty, and the best unit of an LSTM that
    would be left as wide as its projection: by the two widths alone PyTorch tells that it has one."""
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
    for projected, units in _projections(coupling):
        cut = cut_of(coupling, keep)
        channels = coupling.component[units.numpy()]
        gone = channels[~keep[channels]]
        if len(gone) and cut.count(projected) == cut.count(units):
            keep[gone[int(np.argmax(rank[gone]))]] = True
    return keep


def _projections(coupling: Coupling) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each LSTM with a projection: the labels of what it projects to, and of its units."""
    for node in coupling.graph.nodes:
        value = coupling.labelled.values.get(node)
        if kind_of(node) == "recurrent" and isinstance(value, list) and len(value) == 3:
            projected, units = value[1].axes[-1], value[2].axes[-1]
            if projected is not None and units is not None and len(projected) != len(units):
                yield projected, units


def _new_axes(value: Value, seen: set[int]) -> list[Tensor]:
    axes = [axis for axis in value.axes if axis is not None and id(axis) not in seen]
    seen.update(map(id, axes))
    return axes
