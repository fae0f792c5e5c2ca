"""Inputs and layers that the nets are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def image(batch: int) -> tuple[Tensor]:
    return (normal(batch, 3, 8, 8),)


def pixels_last(batch: int) -> tuple[Tensor]:
    """As pictures come from files: the colours of a pixel lie side by side."""
    return (normal(batch, 8, 8, 3).permute(0, 3, 1, 2),)


def tokens(batch: int) -> tuple[Tensor]:
    return (normal(batch, 6, 5),)


def vector(batch: int) -> tuple[Tensor]:
    return (normal(batch, 10),)


def signal(batch: int) -> tuple[Tensor]:
    return (normal(batch, 3, 9),)


def words(batch: int) -> tuple[Tensor]:
    return (torch.randint(0, 20, (batch, 6), generator=torch.Generator().manual_seed(batch)),)


def steps(batch: int) -> tuple[Tensor]:
    """For recurrent layers, which torch.export and torch.onnx follow step by step."""
    return (normal(batch, 3, 5),)


def short_words(batch: int) -> tuple[Tensor]:
    return (words(batch)[0][:, :3],)


def conv(given: int, out: int, kernel: int = 3, **rest: Any) -> nn.Conv2d:
    return nn.Conv2d(given, out, kernel, padding=rest.pop("padding", kernel // 2), **rest)


def block(given: int, out: int, **rest: Any) -> nn.Sequential:
    return nn.Sequential(conv(given, out, **rest), nn.BatchNorm2d(out), nn.ReLU())


def head(width: int) -> nn.Linear:
    return nn.Linear(width, 5)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))
