"""The plan for a goal, of the engine ``slim``: a ratio of channels, or the limit of a price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from slim_model.budget.file_size_search import plan_within_file_size
from slim_model.budget.goal import ChosenPlan, Met, Task, too_coarse
from slim_model.budget.latency_search import plan_within_latency, runtime_on, time_layers
from slim_model.budget.limit import plan_under_limit
from slim_model.budget.methods import Curve
from slim_model.budget.output_damage import measure_output_damage
from slim_model.budget.plan import Plan, silenced, without
from slim_model.budget.ratio import plan_by_ratio, ratios_of
from slim_model.budget.sensitivity import Scan, scan
from slim_model.budget.trials.judged import NOTHING, Leaving, best_plan
from slim_model.cost.counted import CostModel, by_macs
from slim_model.cost.latency_model import ModelLatency
from slim_model.coupling.rank_groups import only


def plan_for(task: Task) -> ChosenPlan:
    """The plan that meets the goal. Raises BudgetError with the least that can be reached."""
    goal, coupling = task.goal, task.coupling
    if goal.price is None:
        ratios = ratios_of(goal, coupling, task.dense, task.heads)
        one_ranking = goal.allocation.kind == "global"
        return ChosenPlan(plan_by_ratio(coupling, task.scores, ratios, one_ranking=one_ranking, multiple_of=goal.block))
    scanned = _scan(task)
    layers = _timed(task)
    plan, met = plan_within_limit(task, scanned.curves if scanned else (), layers)
    return ChosenPlan(plan, met=met, scan=scanned, pays=layers.meter.pays if layers else by_macs)


def _timed(task: Task) -> ModelLatency | None:
    """The latency of every layer, where the goal or its allocation looks at it."""
    goal = task.goal
    if not goal.allocation.timed and goal.price and goal.price.of is not None:
        return None
    layers = time_layers(task.coupling, runtime_on(task.measuring.device), task.measuring.threads, task.progress)
    return layers.counted() if goal.price and goal.price.of is not None else layers


def plan_within_limit(task: Task, curves: Sequence[Curve] = (), layers: ModelLatency | None = None) -> tuple[Plan, Met]:
    """The plan that costs no more than the goal's limit, and as little less as can be, with what was reached.

    Where latency is limited the whole small model is measured, and the search corrects itself until what was measured
    meets the limit. ``curves``: of a sensitivity scan, for an allocation that goes by one; ``layers``: where latency
    counts. Raises BudgetError with the least that can be reached.
    """
    goal, coupling = task.goal, task.coupling
    assert goal.price is not None
    # what an allocation needs to know beside the scores
    losses: Sequence[Tensor] = ()
    if goal.allocation.kind == "damage":
        assert task.data is not None  # the recipe asks for it
        losses = measure_output_damage(coupling, task.scores, task.data, progress=task.progress)
    layers = layers or _timed(task)
    if goal.allocation.kind != "judged":
        return _plan_with(_Known(curves, losses, layers), task, NOTHING)
    # several plans, of which one is taken
    price_of = partial(goal.price.of, CostModel(coupling)) if goal.price.of else layers.ms  # type: ignore[union-attr]
    return best_plan(task, partial(_plan_with, _Known(layers=layers)), price_of)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was measured ahead of the search: see ``plan_under_limit``."""

    curves: Sequence[Curve] = ()
    losses: Sequence[Tensor] = ()
    layers: ModelLatency | None = None


def _plan_with(known: _Known, task: Task, leaving: Leaving) -> tuple[Plan, Met]:
    """The plan of the goal's allocation, for what is left when some branches have gone."""
    goal, coupling, layers = task.goal, task.coupling, known.layers
    assert goal.price is not None
    task.progress("choosing widths")

    def search(price_of: Callable[[np.ndarray], float], limit: float) -> Plan:
        whole = coupling.keep_all()

        def price_at(branches: int) -> float:
            return price_of(without(coupling, whole, leaving.first(branches)))

        count = leaving.count(price_at, limit)
        reached = price_at(count)
        if count and limit * (1 - goal.price.close) <= reached <= limit:  # type: ignore[union-attr]
            return silenced(coupling, whole, task.scores, leaving.first(count))
        # a branch less where they are enough, and narrower layers for the rest
        gone = leaving.first(count - 1 if count and reached <= limit else count)
        plan = plan_under_limit(
            *only(coupling, task.scores, leaving.among),
            goal.price,  # type: ignore[arg-type]
            lambda keep: price_of(without(coupling, keep, gone)),
            limit,
            allocation=goal.allocation,
            multiple_of=goal.block,
            curves=known.curves,
            losses=known.losses,
            latency=layers.ms if layers else None,
            pays=layers.meter.pays if layers else by_macs,
        )
        return silenced(coupling, plan.keep, task.scores, gone)

    # prices that only a written file or a run can tell have searches of their own around this one
    if goal.price.of is None:
        assert layers is not None
        return plan_within_latency(task, search, layers)
    price_of = partial(goal.price.of, CostModel(coupling))
    if goal.price.file:
        return plan_within_file_size(task, search, price_of)
    dense = price_of(None)
    limit = goal.limit_of(dense)
    plan = search(price_of, limit)
    reached = price_of(plan.counted(coupling))
    if reached < limit * (1 - goal.price.close):
        raise too_coarse(goal.price, limit, reached)
    return plan, Met(goal.price.name, goal.allocation.name, limit, dense, reached)


def _scan(task: Task) -> Scan | None:
    """What each group loses at each share removed, for an allocation by sensitivity."""
    if task.goal.allocation.kind != "sensitivity":
        return None
    assert task.data is not None  # the recipe asks for it
    measure = task.goal.allocation.option("measure", "error")
    return scan(task.coupling, task.scores, task.data, measure=measure, path=task.goal.scan, progress=task.progress)
