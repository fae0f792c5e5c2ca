"""How much goes in each round, where removal is repeated."""

from __future__ import annotations

from dataclasses import replace

from slim_model.coupling.attention_heads import left
from slim_model.coupling.coupling import Coupling
from slim_model.graph.graph import Graph
from slim_model.recipe import Recipe


def recipe_of_one_round(recipe: Recipe) -> Recipe:
    """A share of a price is that of what the round before left."""
    if recipe.goal is None or recipe.iterations == 1:
        return recipe
    return replace(recipe, ratio=1 - (1 - recipe.ratio) ** (1 / recipe.iterations))


def shares_of_round(recipe: Recipe, dense: Graph, number: int, coupling: Coupling) -> list[float]:
    """How much of each group goes in round ``number``, so that a geometric share of the dense one is left: with 0.75 in
    two rounds, a half and then a half."""
    if coupling.graph is dense and recipe.iterations == 1:
        return [recipe.ratio] * len(coupling.groups)
    kept = (1 - recipe.ratio) ** (number / recipe.iterations)
    shares = [left(group, coupling.graph, dense) for group in coupling.groups]
    if recipe.scope == "global" and recipe.iterations > 1:  # one ranking: what went of one group is made up by others
        widths = [group.width for group in coupling.groups]
        whole = sum(width / share for width, share in zip(widths, shares, strict=True))
        return [max(0.0, 1 - kept * whole / sum(widths))] * len(widths)
    return [max(0.0, 1 - kept / share) for share in shares]
