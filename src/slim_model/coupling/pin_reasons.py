"""Why a channel is pinned, in one sentence for each layer."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from torch import fx

from slim_model.coupling.coupling import Pinned
from slim_model.coupling.layer_names import layer_name
from slim_model.graph.graph import source_line
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import FIXED

ASKED = "you asked to keep it (--keep)"
MEETS_FIXED = "it meets positions that are fixed"


def pinned_layers(labelled: Labelled, component: np.ndarray, protected: np.ndarray) -> tuple[Pinned, ...]:
    """For each layer with fixed channels: the nearest reason, found by following ties back from a pin."""
    reasons = _reasons(labelled, component, protected)
    found: dict[tuple[str, str, str], Pinned] = {}
    seen: set[int] = set()
    for axis, node in labelled.made:
        labels = [x for x in np.unique(axis.numpy()).tolist() if x != FIXED and component[x] == 0 and x not in seen]
        if not labels:
            continue
        seen.update(labels)
        culprit, why = reasons.get(labels[0], (None, ASKED))
        op = "" if culprit is None else str(culprit.target)
        where = "" if culprit is None else source_line(culprit)
        name = layer_name(labelled, node)
        previous = found.get((name, op, where))
        count = len(labels) + (previous.channels if previous else 0)
        found[name, op, where] = Pinned(name, count, op, where, why, culprit is not None and culprit.op == "output")
    return tuple(found.values())


def _reasons(labelled: Labelled, component: np.ndarray, protected: np.ndarray) -> dict[int, tuple[fx.Node | None, str]]:
    """label -> (node, why): breadth first from the pins along the ties, so that the nearest pin is named."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    met: dict[int, tuple[fx.Node | None, str]] = {}
    for a, b, node in labelled.ties:
        fixed = component[a.numpy()] == 0
        for x, y in zip(a.numpy()[fixed].tolist(), b.numpy()[fixed].tolist(), strict=True):
            neighbours[x].append(y)
            neighbours[y].append(x)
            if FIXED in (x, y) and x != y:
                met.setdefault(max(x, y), (node, MEETS_FIXED))
    reasons: dict[int, tuple[fx.Node | None, str]] = {}
    for label in protected.tolist():
        reasons[label] = (None, ASKED)
    for pin in sorted(labelled.pins, key=lambda pin: pin.node.op != "output"):
        for label in pin.labels.tolist():
            if label != FIXED:
                reasons.setdefault(label, (pin.node, pin.why))
    reasons = {**met, **reasons}
    frontier = list(reasons)
    while frontier:
        reached = []
        for label in frontier:
            for other in neighbours.get(label, ()):
                if other not in reasons and other != FIXED:
                    reasons[other] = reasons[label]
                    reached.append(other)
        frontier = reached
    return reasons
