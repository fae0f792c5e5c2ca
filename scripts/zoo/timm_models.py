"""timm: the smallest model of every family (a family is a module of ``timm.models``), or with ``--all`` every one."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import list_modules
from torch import nn

Inputs = tuple[Any, ...]
_SIDE = 96
"""Pixels where a model takes any size: convolutional nets do."""


def _build(name: str) -> tuple[nn.Module, Inputs]:
    model = timm.create_model(name, pretrained=False).eval()
    channels, *shape = model.pretrained_cfg["input_size"]
    small = torch.randn(1, channels, *(min(size, _SIDE) for size in shape))
    takes_any = not model.pretrained_cfg.get("fixed_input_size") and _runs(model, small)
    return model, (small if takes_any else torch.randn(1, channels, *shape),)


@torch.no_grad()
def _runs(model: nn.Module, image: torch.Tensor) -> bool:
    with contextlib.suppress(Exception):  # whatever a model says to a size that it does not take
        return bool(model(image).numel())
    return False


def _parameters(name: str) -> float:
    """Counted on meta tensors, which take no memory; infinite where a builder needs real ones."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
    except Exception:
        return math.inf


def one_each() -> list[str]:
    """Of each family the name with the fewest parameters."""
    names = (min(timm.list_models(module=family), key=_parameters, default=None) for family in FAMILIES)
    return [name for name in names if name]


def smallest_first() -> list[str]:
    return sorted(timm.list_models(), key=_parameters)


FAMILIES = sorted(list_modules())


def models(names: list[str]) -> dict[str, Callable[[], tuple[nn.Module, Inputs]]]:
    return {name: functools.partial(_build, name) for name in names}
