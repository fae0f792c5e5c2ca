"""Inputs that the small model is proven and checked on."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from slim_model.export.eager_model import EagerModel
from slim_model.graph.graph import Graph, first_sample, shapes_at


def other_batches(graph: Graph, sizes: tuple[int, ...], seed: int) -> list[tuple[Any, ...]]:
    """Random inputs of other batch sizes, and of other sizes of what is free besides; of the example's where the batch
    is fixed, of which one is enough."""
    generator = torch.Generator().manual_seed(seed + 1)  # an example that was made up has ``seed``
    found = []
    for size in sizes if graph.dynamic_batch else (0,):
        shapes = shapes_at(graph, graph.free.elsewhere(size))
        found.append(tuple(another_like(x, s, generator) for x, s in zip(graph.inputs, shapes, strict=True)))
    return found


def onnx_batches(written: Graph | EagerModel, seed: int) -> list[tuple[Any, ...]]:
    """One example, which is what most will run, and random inputs of another batch size; several, where what is
    written makes decisions, which one input may not show to have been taken for all."""
    if isinstance(written, EagerModel):
        others = (other_batches(written.graph, (), seed + number) for number in range(3))
        return [written.graph.inputs, *itertools.chain.from_iterable(others)]
    return [first_sample(written), *other_batches(written, (2,), seed)]


def another_like(x: Any, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    """A tensor like ``x`` with other values: normal for floats, within the range seen for integers. Of a mask the rows
    of ``x`` are taken: where a random one hides everything, attention is not defined."""
    if not isinstance(x, Tensor):
        return x
    if x.is_floating_point():
        return torch.randn(shape, generator=generator).to(x)
    low, high = (int(x.min()), int(x.max()) + 1) if x.numel() else (0, 1)
    if x.dim() and low >= 0 and high <= 2 and x.shape[1:] == shape[1:]:
        return x[torch.randint(0, len(x), shape[:1], generator=generator).to(x.device)]
    return torch.randint(low, high, shape, generator=generator).to(x)
