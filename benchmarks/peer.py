"""Torch-Pruning through the same command, at as many multiply-adds as ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe

INNER = ("conv1", "*.conv2")
"""It cannot prune shortcuts that pad channels: the convolutions inside of a ResNet's blocks alone."""
PEER: dict[str, Any] = {"engine": "torch-pruning", "criterion": "l1", "recover": "none", "keep": INNER}


def ratio_for(times: float, model: nn.Module, example: tuple[Tensor], recipe: Recipe) -> float:
    """The ratio of channels at which it leaves 1/``times`` of the multiply-adds, or a little less."""
    low, high = 0.2, 0.95
    for _ in range(8):
        middle = (low + high) / 2
        found = compile_model(model, example, recipe.but(ratio=middle, data=None, finetune=0))
        low, high = (middle, high) if found.dense_cost.macs / found.slim_cost.macs < times else (low, middle)
    return high
