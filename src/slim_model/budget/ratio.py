"""A ratio, the fraction of channels removed -> the channels to keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from slim_model.budget.goal import Goal
from slim_model.budget.plan import (
    FLOOR,
    Plan,
    best_first,
    check_any,
    count_lowest,
    keep_best,
    plan_of,
    refill_empty_axes,
    rungs_of,
)
from slim_model.cost.break_even import ranks_among
from slim_model.coupling.attention_heads import share_left
from slim_model.coupling.coupling import Coupling
from slim_model.errors import BudgetError
from slim_model.graph.graph import Graph


def plan_by_ratio(
    coupling: Coupling,
    scores: list[Tensor],
    ratio: float | Sequence[float],
    *,
    one_ranking: bool = False,
    multiple_of: int = 1,
) -> Plan:
    """Keep the best of each group. ``ratio``: one for all groups, or one for each. ``one_ranking``: the channels of all
    groups are ranked together. ``multiple_of`` rounds layer widths to the machine's block (see ``rungs_of``)."""
    ratios = [ratio] * len(coupling.groups) if isinstance(ratio, float) else list(ratio)
    check_any(coupling)
    targets = _of_one_ranking(coupling, scores, ratios) if one_ranking else _of_each(coupling, ratios)
    if ranks := ranks_among(coupling):
        orders = best_first(coupling, scores)
        targets = ranks.in_share(targets, 1 - max(ratios), partial(keep_best, coupling, orders))
    # Targets are real numbers; layers get widths that the machine's kernels fill.
    counts = [
        nearest(rungs_of(group, multiple_of), target) for group, target in zip(coupling.groups, targets, strict=True)
    ]
    plan = plan_of(
        coupling, refill_empty_axes(coupling, keep_best(coupling, best_first(coupling, scores), counts), scores)
    )
    if all(before == after for before, after in plan.widths):
        raise BudgetError(
            f"ratio {max(ratios, default=0.0):g} removes no channel: the layers are too narrow for it"
            + (f" when widths are rounded to {multiple_of}; try --multiple-of 1." if multiple_of > 1 else ".")
        )
    return plan


def ratios_of(goal: Goal, coupling: Coupling, dense: Graph, heads: Sequence[bool] = ()) -> list[float]:
    """The fraction that each group loses in this round, so that a geometric share of the dense model is left.

    ``heads``: whether each group's channels are whole attention heads, for a goal of these alone.
    """
    if goal.whole_heads:
        return [goal.ratio if whole else 0.0 for whole in heads]
    if coupling.graph is dense and goal.rounds == 1:
        return [goal.ratio] * len(coupling.groups)
    kept = (1 - goal.ratio) ** (goal.round / goal.rounds)
    shares = [share_left(group, coupling.graph, dense) for group in coupling.groups]
    if goal.allocation.kind == "global" and goal.rounds > 1:  # what one group lost more than its share, others keep
        widths = [group.width for group in coupling.groups]
        whole = sum(width / share for width, share in zip(widths, shares, strict=True))
        return [max(0.0, 1 - kept * whole / sum(widths))] * len(widths)
    return [max(0.0, 1 - kept / share) for share in shares]


def nearest(rungs: Sequence[int], target: float) -> int:
    """The wider of two as near: ``(4, 8, 16), 12 -> 16``."""
    return min(reversed(rungs), key=lambda count: abs(count - target))


def _of_each(coupling: Coupling, ratios: list[float]) -> list[float]:
    return [group.width * (1 - ratio) for group, ratio in zip(coupling.groups, ratios, strict=True)]


def _of_one_ranking(coupling: Coupling, scores: list[Tensor], ratios: list[float]) -> list[float]:
    """One ranking over all groups that lose some; scores are divided by their group's mean size so that groups compare.
    Equal scores are taken from all groups alike."""
    chosen = [i for i, ratio in enumerate(ratios) if ratio > 0]
    count = int(sum(coupling.groups[i].width * ratios[i] for i in chosen) + 1e-6)
    worth = [(scores[i] / scores[i].abs().mean().clamp(min=1e-30)).numpy() for i in chosen]
    removed = dict(zip(chosen, count_lowest(worth, count), strict=True))
    return [max(1.0, group.width * FLOOR, group.width - removed.get(i, 0)) for i, group in enumerate(coupling.groups)]
