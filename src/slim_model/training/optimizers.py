"""Optimizers of fine-tuning, and the schedule of their learning rate.

The rate rises over the first twentieth of the steps and falls along a cosine (Loshchilov, Hutter 2017).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from slim_model.graph.graph import Graph
from slim_model.ops import kind_of

_RATES = {"sgd": 0.01, "adamw": 1e-3}
_WARM_UP = 0.05


def optimizer_kind(graph: Graph, asked: str) -> str:
    """``auto``: ``sgd`` where there is BatchNorm."""
    if asked != "auto":
        return asked
    return "sgd" if any(kind_of(node) == "batch_norm" for node in graph.nodes) else "adamw"


def optimizer_for(
    kind: str, net: nn.Module, rate: float | None, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR, float]:
    """(the optimizer, its schedule over ``steps``, the highest rate). Weights decay; what shifts or scales a channel
    does not."""
    rate = rate or _RATES[kind]
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 5e-4 if kind == "sgd" else 1e-2},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups, rate)
    return optimizer, LambdaLR(optimizer, lambda step: _share(step, steps)), rate


def _share(step: int, total: int) -> float:
    """Of the highest rate, after ``step`` of ``total`` steps."""
    warm = max(1, round(_WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
