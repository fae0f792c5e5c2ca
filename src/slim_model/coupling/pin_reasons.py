"""Why a channel is pinned: every reason with the labels it fixes, and of each label the nearest one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from slim_model.coupling.coupling import Pinned
from slim_model.coupling.layer_names import layer_name
from slim_model.graph.graph import source_line
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import FIXED

ASKED = "you asked to keep it (--keep)"
MEETS_FIXED = "it meets positions that are fixed"


@dataclass(frozen=True, slots=True)
class Reason:
    """What fixes channels: the nodes of one operator on one line of the user's code, for one reason.

    ``node``: the name of the one node, where its line is not known. ``op`` is '' where the user asked for it.
    """

    op: str
    where: str
    why: str
    is_output: bool = False
    node: str = ""

    @property
    def short(self) -> str:
        """``'aten.softmax.int at net.py:3'``"""
        line = self.where.partition(" in ")[0]
        return " at ".join(filter(None, (self.op, line))) or self.why


def list_reasons(labelled: Labelled, protected: np.ndarray) -> Iterator[tuple[Reason, np.ndarray]]:
    """Each reason with labels that it fixes itself; those that are tied to them are fixed with them. A reason may come
    several times."""
    if len(protected):
        yield Reason("", "", ASKED), protected
    for pin in labelled.pins:
        labels = pin.labels.numpy()
        yield _reason(pin.node, pin.why), labels[labels != FIXED]
    for tie in labelled.ties:
        left, right = tie.left.numpy(), tie.right.numpy()
        one_sided = (left == FIXED) != (right == FIXED)
        if one_sided.any():
            yield _reason(tie.node, MEETS_FIXED), np.maximum(left, right)[one_sided]


def _reason(node: fx.Node, why: str) -> Reason:
    where = source_line(node)
    return Reason(str(node.target), where, why, node.op == "output", "" if where else node.name)


def find_pinned_layers(labelled: Labelled, component: np.ndarray, protected: np.ndarray) -> tuple[Pinned, ...]:
    """For each layer: how many of its channels are fixed for each reason. A channel counts for its nearest one."""
    reasons = _nearest(labelled, component, protected)
    counts: Counter[tuple[str, str, str, str, bool]] = Counter()
    seen: set[int] = set()
    for axis, node in labelled.made:
        fixed = {x for x in np.unique(axis.numpy()).tolist() if x != FIXED and component[x] == 0} - seen
        seen |= fixed
        name = layer_name(labelled, node) if fixed else ""
        for reason in map(reasons.__getitem__, sorted(fixed)):
            counts[name, reason.op, reason.where, reason.why, reason.is_output] += 1
    return tuple(
        Pinned(name=name, channels=channels, op=op, where=where, why=why, is_output=is_output)
        for (name, op, where, why, is_output), channels in counts.items()
    )


def _nearest(labelled: Labelled, component: np.ndarray, protected: np.ndarray) -> dict[int, Reason]:
    """label -> reason: breadth first along the ties from the labels that reasons fix themselves. Of several that are
    equally near, what the user asked for and the model's outputs are named first, and ties to fixed positions last."""
    nearest: dict[int, Reason] = {}
    reasons = list_reasons(labelled, protected)
    for reason, labels in sorted(reasons, key=lambda pair: pair[0].why != ASKED and not pair[0].is_output):
        for label in labels.tolist():
            nearest.setdefault(label, reason)
    neighbours = _tied_to(labelled, component)
    # One round for each step along the ties: whoever is reached first has named the nearest reason.
    frontier = list(nearest)
    while frontier:
        reached = []
        for label in frontier:
            for other in neighbours.get(label, ()):
                if other not in nearest and other != FIXED:
                    nearest[other] = nearest[label]
                    reached.append(other)
        frontier = reached
    return nearest


def _tied_to(labelled: Labelled, component: np.ndarray) -> dict[int, list[int]]:
    """Of the labels that are fixed: those that each is tied to."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    for left, right, _ in labelled.ties:
        fixed = component[left.numpy()] == 0
        for x, y in zip(left.numpy()[fixed].tolist(), right.numpy()[fixed].tolist(), strict=True):
            neighbours[x].append(y)
            neighbours[y].append(x)
    return neighbours
