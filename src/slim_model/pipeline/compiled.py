"""The result of the pipeline: a proven small graph, with what led to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from slim_model.budget.goal import Met
from slim_model.budget.plan import Plan
from slim_model.budget.sensitivity import Scan
from slim_model.cost.counted import Cost
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import positions_left
from slim_model.cutting.kept_norms import KeptNorm, find_kept_norms
from slim_model.cutting.silence import reading_weights
from slim_model.data.accuracy import Step
from slim_model.export.torch_files import Removal, removed_slices
from slim_model.graph.graph import Graph
from slim_model.proof.prove import Proof
from slim_model.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Removed:
    """One proven pass: what ``coupling`` and ``plan`` took from the graph that the pass was given. ``loses``: what
    attention lost, whole ``heads`` or ``width``. ``met``: the limit that was met, where the goal was no ratio of
    channels; ``scan``: the sensitivity scan that the plan was chosen by. ``small`` has the values that were proven,
    before any recovery."""

    loses: str
    coupling: Coupling
    plan: Plan
    small: Graph
    proof: Proof
    dense_cost: Cost
    slim_cost: Cost
    met: Met | None = None
    scan: Scan | None = None

    @property
    def dense(self) -> Graph:
        """The graph that the pass was given."""
        return self.coupling.graph

    def kept_positions(self) -> dict[tuple[str, int], np.ndarray]:
        """(tensor, axis) -> the positions that the pass left; axes that keep all are not listed."""
        return positions_left(self.coupling, self.plan.keep)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A small graph that was proven, and the ``passes`` that led to it from ``dense``.

    ``block``: what layer widths were rounded to. ``steps``: the accuracy of the dense model, right after removal, and
    after each step that then gave the small graph's tensors other values; none without data. ``warnings``: what the
    user should know.
    """

    dense: Graph
    small: Graph
    passes: tuple[Removed, ...] = ()
    block: int = 1
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()

    def after(self, removed: Removed) -> Compiled:
        """With one more pass."""
        return replace(self, small=removed.small, passes=(*self.passes, removed))

    @property
    def start(self) -> Graph:
        """The dense model as its first pass took it: some layers may be factored."""
        return self.passes[0].dense if self.passes else self.dense

    @property
    def coupling(self) -> Coupling:
        """That of the last pass."""
        return self.passes[-1].coupling

    @property
    def plan(self) -> Plan:
        """That of the last pass."""
        return self.passes[-1].plan

    @property
    def proof(self) -> Proof:
        """Of all passes together: errors add up."""
        return reduce(Proof.and_then, (one.proof for one in self.passes))

    @property
    def dense_cost(self) -> Cost:
        return self.passes[0].dense_cost

    @property
    def slim_cost(self) -> Cost:
        return self.passes[-1].slim_cost

    @property
    def met(self) -> Met | None:
        """What the last pass met, against the dense model's."""
        first, last = self.passes[0].met, self.passes[-1].met
        return replace(last, dense=first.dense) if last and first else last

    def kept_positions(self, since: int = 0) -> dict[tuple[str, int], np.ndarray]:
        """(tensor, axis) -> the positions that are left of those ahead of pass number ``since``; axes that keep all
        are not listed."""
        kept: dict[tuple[str, int], np.ndarray] = {}
        for one in self.passes[since:]:
            here = one.kept_positions()
            kept |= {place: kept[place][rows] if place in kept else rows for place, rows in here.items()}
        return kept

    def silent_weights(self) -> set[str]:
        """Names of stored tensors that are zero, since what they would read is gone."""
        return {name for one in self.passes for name in reading_weights(one.coupling, one.plan.silent)}

    def removal(self, recipe: Recipe) -> Removal:
        """What a saved file remembers of it."""
        return Removal(
            arguments=self.dense.arguments,
            removed=removed_slices(self.start, self.kept_positions()),
            factored=self.start.factored,
            passes=tuple((one.loses, removed_slices(one.dense, one.kept_positions())) for one in self.passes),
            ratio=None if recipe.budget.target else recipe.budget.share_removed,
            coupling=recipe.coupling,
            tracing=recipe.tracing,
        )

    def kept_norms(self) -> tuple[KeptNorm, ...]:
        """Norms that take their statistics over the channels that are left, of all passes."""
        return tuple(
            dict.fromkeys(norm for one in self.passes for norm in find_kept_norms(one.coupling, one.plan.keep))
        )
