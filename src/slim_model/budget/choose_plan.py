"""Scores and a goal -> the channels to keep."""

from __future__ import annotations

from slim_model.budget.goal import ChosenPlan, Task
from slim_model.budget.options import ENGINES
from slim_model.budget.plan import Plan, plan_of
from slim_model.errors import ensure
from slim_model.labels.values import FIXED


def choose_plan(task: Task) -> ChosenPlan:
    """The plan of the engine that the goal names. Raises BudgetError where the goal cannot be met, with the least that
    can be reached."""
    choice: ChosenPlan = ENGINES[task.goal.engine](task)
    _check(choice.plan, task, f"engine {task.goal.engine}")
    return choice


def _check(plan: Plan, task: Task, engine: str) -> None:
    """The plan is one of this coupling: what is fixed stays, every group keeps a channel, and widths tell the plan."""
    coupling, keep = task.coupling, plan.keep
    ensure(keep.shape == (coupling.components,) and keep.dtype == bool, engine, "its plan is of another coupling")
    ensure(bool(keep[FIXED]), engine, "it removes what is fixed")
    ensure(plan.widths == plan_of(coupling, keep).widths, engine, "its widths are not those of its plan")
    for group, (_, after) in zip(coupling.groups, plan.widths, strict=True):
        ensure(after > 0, engine, f"it leaves '{group.name}' without channels")
