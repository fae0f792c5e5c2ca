"""engines: who turns scores into channels to keep. One row each in ``ENGINES``; all stand behind the same proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slim_model.budget import Plan, budget
from slim_model.couple import Coupling
from slim_model.trace import Graph

if TYPE_CHECKING:
    from slim_model.slim import Recipe

Check = Callable[[Graph, Sequence[tuple[Any, ...]]], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """``check(small, batches)`` raises ProofError where what the engine made is not what was proven."""

    plan: Plan
    check: Check = lambda small, batches: None


def _own(model: nn.Module, coupling: Coupling, scores: list[Tensor], recipe: Recipe, ratios: list[float]) -> Chosen:
    return Chosen(budget(coupling, scores, ratio=ratios, scope=recipe.scope, multiple_of=recipe.block))


def _torch_pruning(
    model: nn.Module, coupling: Coupling, scores: list[Tensor], recipe: Recipe, ratios: list[float]
) -> Chosen:
    from slim_model import torch_pruning  # its import takes a second

    peer = torch_pruning.prune(model, coupling, scores, ratio=recipe.ratio, scope=recipe.scope, round_to=recipe.block)
    return Chosen(peer.plan, lambda small, batches: torch_pruning.check(peer, small, batches))


ENGINES: dict[str, Callable[[nn.Module, Coupling, list[Tensor], Any, list[float]], Chosen]] = {
    "slim": _own,
    "torch-pruning": _torch_pruning,
}
