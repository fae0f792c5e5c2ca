"""The result of the pipeline: a proven small graph, with what led to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from slim_model.budget.goal import Met
from slim_model.budget.plan import Plan
from slim_model.cost.counted import Cost
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import left_of
from slim_model.data.accuracy import Step
from slim_model.graph.graph import Graph
from slim_model.proof.prove import Proof


@dataclass(frozen=True, slots=True)
class Compiled:
    """A small graph that was proven, and all that led to it. ``kind``: what went of attention in this pass, whole heads
    or widths; ``before``: the pass before it, whose small graph the coupling and the plan are of. ``steps``: what the
    dense model reaches, what is left right after removal, and each step that then gave the small graph's tensors other
    values; none without data."""

    dense: Graph
    small: Graph
    coupling: Coupling
    plan: Plan
    proof: Proof
    dense_cost: Cost
    slim_cost: Cost
    warnings: tuple[str, ...]
    kind: Literal["heads", "width"] = "width"
    before: Compiled | None = None
    met: Met | None = None
    steps: tuple[Step, ...] = ()

    def after(self, before: Compiled) -> Compiled:
        """Both passes as one, from the dense model on."""
        warnings = tuple(dict.fromkeys((*before.warnings, *self.warnings)))
        met = replace(self.met, dense=before.met.dense) if self.met and before.met else self.met
        return replace(
            self,
            dense=before.dense,
            proof=before.proof.and_then(self.proof),
            dense_cost=before.dense_cost,
            warnings=warnings,
            before=before,
            met=met,
            steps=before.steps,
        )

    def kept_positions(self, first: Compiled | None = None) -> dict[tuple[str, int], np.ndarray]:
        """(tensor, axis) -> the positions of the dense model that are left; axes that keep all are not listed.
        ``first``: since that pass, instead."""
        found = self.before.kept_positions(first) if self.before and self is not first else {}
        here = left_of(self.coupling, self.plan.keep)
        return found | {place: found[place][rows] if place in found else rows for place, rows in here.items()}
