"""What is removed, pass by pass: whole attention heads first, then widths, in one round or several."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from slim_model.budget.goal import Goal
from slim_model.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Pass:
    """One removal. ``loses``: what attention loses, whole ``heads`` or ``width`` in every head. ``round``: 0 where no
    recovery or training follows, else the number of the round that it opens. ``optional``: where nothing can go, the
    next pass follows all the same."""

    goal: Goal
    loses: str = "width"
    round: int = 1
    optional: bool = False


def passes_of(recipe: Recipe, block: int) -> list[Pass]:
    """The passes that a recipe asks for. ``block``: layer widths are rounded to it.

    Whole heads lose ``1 - sqrt(1 - ratio)``, so that as large a share of what is left of their width may follow.
    """
    goal, attention, rounds = Goal.of(recipe.budget, block), recipe.coupling.attention, recipe.budget.iterations
    first = []
    if attention == "both":
        heads = replace(goal, ratio=1 - math.sqrt(1 - goal.ratio), whole_heads=True)
        first = [Pass(heads, "heads", round=0, optional=True)]
    if goal.price is not None and rounds > 1:  # a share of a price is that of what the round before left
        goal = replace(goal, ratio=1 - (1 - goal.ratio) ** (1 / rounds))
    loses = "heads" if attention == "heads" else "width"
    return [*first, *(Pass(replace(goal, round=n, rounds=rounds), loses, round=n) for n in range(1, rounds + 1))]
