"""A goal -> the plan that meets it. Where latency is limited, the whole small model is measured, and the search
corrects itself until what was measured meets the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
from torch import Tensor

from slim_model.budget.allocate import meet
from slim_model.budget.file_size_search import plan_within_file_size
from slim_model.budget.goal import Allocation, Goal, Met, too_coarse
from slim_model.budget.latency_search import plan_within_latency, runtime_on, time_layers
from slim_model.budget.methods import TIMED, Curve, allocation_of
from slim_model.budget.output_damage import damage
from slim_model.budget.plan import Plan
from slim_model.budget.sensitivity import scan
from slim_model.cost.counted import Meter
from slim_model.cost.latency_model import ModelLatency
from slim_model.coupling.coupling import Coupling
from slim_model.data.batches import Data
from slim_model.progress import Progress, silent
from slim_model.reporting.sensitivity_plot import plot


def aim(
    coupling: Coupling,
    scores: list[Tensor],
    goal: Goal,
    allocation: Allocation,
    data: Data | None,
    *,
    device: str = "cpu",
    threads: int = 1,
    progress: Progress = silent,
) -> tuple[Plan, Met]:
    """Raises BudgetError with the least that can be reached."""
    curves = _curves(coupling, scores, allocation, data, progress)
    losses: Sequence[Tensor] = ()
    layers: ModelLatency | None = None
    if allocation.kind == "damage":
        assert data is not None  # the recipe asks for it
        losses = damage(coupling, scores, data, progress=progress)
    if allocation.kind in TIMED or goal.price.of is None:
        layers = time_layers(coupling, runtime_on(device), threads, progress)
    progress("choosing widths")

    def search(of: Callable[[np.ndarray], float], limit: float) -> Plan:
        return meet(
            *(coupling, scores, goal.price, of, limit),
            allocate=allocation.name,
            multiple_of=allocation.multiple_of,
            curves=curves,
            losses=losses,
            latency=layers.ms if layers else None,
        )

    if goal.price.of is None:
        assert layers is not None
        return plan_within_latency(coupling, scores, goal, search, allocation, layers, device, threads, progress)
    of = partial(goal.price.of, Meter(coupling))
    if goal.price.file:
        return plan_within_file_size(coupling, goal, search, of, allocation.name, device)
    dense = of(None)
    limit, price = goal.of(dense), goal.price
    plan = search(of, limit)
    reached = of(plan.keep)
    if reached < limit * (1 - price.close):
        raise too_coarse(price, limit, reached)
    return plan, Met(price.name, allocation.name, limit, dense, reached)


def _curves(
    coupling: Coupling, scores: list[Tensor], allocation: Allocation, data: Data | None, progress: Progress
) -> Sequence[Curve]:
    """A picture of the scan lies beside its file, where matplotlib is installed."""
    if allocation.kind != "sensitivity":
        return ()
    assert data is not None  # the recipe asks for it
    measure = allocation_of(allocation.name).keywords.get("measure", "error")
    found = scan(coupling, scores, data, measure=measure, path=allocation.scan, progress=progress)
    if allocation.scan and find_spec("matplotlib"):
        plot(found, allocation.scan.with_suffix(".svg"))
    return found.curves
