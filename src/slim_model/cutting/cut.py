"""What a plan leaves of each axis."""

from __future__ import annotations

import numpy as np

from slim_model.coupling.coupling import Coupling
from slim_model.errors import SlimError
from slim_model.ops import Cut


class CutFailed(SlimError):
    """One node of the graph cannot be made smaller: its channels must be pinned. Never seen by users."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node}: {reason}")
        self.node, self.reason = node, reason


def cut_of(coupling: Coupling, keep: np.ndarray) -> Cut:
    """Which labels stay, of the channels ``keep``: bool by component number; component 0 is fixed and stays."""
    return Cut(coupling.graph, coupling.labelled.values, coupling.labelled.choices, coupling.labels_left(keep))


def positions_left(coupling: Coupling, keep: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """(tensor, axis) -> the positions of the dense model that are left; axes that keep all are not listed."""
    kept, positions = coupling.labels_left(keep), {}
    for birth in coupling.labelled.births:
        here = np.flatnonzero(kept[birth.start : birth.start + birth.size])
        if len(here) < birth.size and not birth.owner.startswith("@"):
            positions[birth.owner, birth.axis] = here
    return positions
