"""What is removed, pass by pass: whole attention heads first, then widths, in one round or several."""

from __future__ import annotations

from dataclasses import dataclass

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
    """The passes that a recipe asks for. ``block``: layer widths are rounded to it."""
    goal, attention = Goal.of(recipe.budget, block), recipe.coupling.attention
    heads = [Pass(goal.of_heads_first(), "heads", round=0, optional=True)] if attention == "both" else []
    loses = "heads" if attention == "heads" else "width"
    return [*heads, *(Pass(part, loses, round=part.round) for part in goal.in_rounds(recipe.budget.iterations))]
