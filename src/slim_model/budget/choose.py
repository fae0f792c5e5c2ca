"""Scores and a goal -> the channels to keep."""

from __future__ import annotations

from slim_model.budget.goal import Choice, Task
from slim_model.budget.options import ENGINES
from slim_model.errors import InternalError


def choose(task: Task) -> Choice:
    """The plan of the engine that the goal names. Raises BudgetError where the goal cannot be met, with the least that
    can be reached."""
    choice: Choice = ENGINES[task.goal.engine](task)
    if not all(1 <= after <= before for before, after in choice.plan.widths):
        raise InternalError(f"engine '{task.goal.engine}' left a group without channels, or with more than it had")
    return choice
