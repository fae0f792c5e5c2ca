"""Who turns scores into channels to keep. One row each in ``ENGINES``; all stand behind the same proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slim_model.budget.goal import Allocation, Met
from slim_model.budget.plan import Plan
from slim_model.budget.ratio import budget
from slim_model.budget.search import aim
from slim_model.coupling.coupling import Coupling
from slim_model.data.batches import Data
from slim_model.graph.graph import Graph
from slim_model.progress import Progress

if TYPE_CHECKING:
    from slim_model.recipe import Recipe


Check = Callable[[Graph, Sequence[tuple[Any, ...]]], None]


@dataclass(frozen=True, slots=True)
class Task:
    """What an engine is given. ``ratios``: how much of each group goes, where the recipe has no other goal."""

    model: nn.Module
    coupling: Coupling
    scores: list[Tensor]
    recipe: Recipe
    ratios: list[float]
    data: Data | None
    progress: Progress


@dataclass(frozen=True, slots=True)
class Chosen:
    """``check(small, batches)`` raises ProofError where what the engine made is not what was proven. ``met``: the
    budget, where it is no ratio of channels."""

    plan: Plan
    check: Check = lambda small, batches: None
    met: Met | None = None


def _own(task: Task) -> Chosen:
    recipe = task.recipe
    if recipe.goal is None:
        return Chosen(
            budget(task.coupling, task.scores, ratio=task.ratios, scope=recipe.scope, multiple_of=recipe.block)
        )
    allocation = Allocation(recipe.allocation, recipe.block, recipe.scan)
    plan, met = aim(
        *(task.coupling, task.scores, recipe.goal, allocation, task.data),
        device=recipe.device,
        threads=recipe.threads,
        progress=task.progress,
    )
    return Chosen(plan, met=met)


def _torch_pruning(task: Task) -> Chosen:
    from slim_model.budget import torch_pruning  # its import takes a second

    recipe = task.recipe
    peer = torch_pruning.prune(
        *(task.model, task.coupling, task.scores), ratio=recipe.ratio, scope=recipe.scope, round_to=recipe.block
    )
    return Chosen(peer.plan, lambda small, batches: torch_pruning.check(peer, small, batches))


ENGINES: dict[str, Callable[[Task], Chosen]] = {
    "slim": _own,
    "torch-pruning": _torch_pruning,
}
