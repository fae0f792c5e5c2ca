"""Inputs that the small model is proven and checked on."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from slim_model.export.eager_model import EagerModel
from slim_model.graph.graph import Graph, first_sample, shapes_at
from slim_model.graph.other_inputs.looked_up import Span, looked_up
from slim_model.graph.other_inputs.other_sizes import resized
from slim_model.graph.other_inputs.other_values import is_mask, other_values
from slim_model.graph.tensor_trees import not_finite, tensors_among


def other_batches(graph: Graph, sizes: tuple[int, ...], seed: int) -> list[tuple[Any, ...]]:
    """Other inputs, of other batch sizes, and of other sizes of what is free besides; of the example's where the batch
    is fixed, of which one is enough. Each input has other values, as far as the model takes them."""
    generator = torch.Generator().manual_seed(seed + 1)  # an example that was made up has ``seed``
    plain = all(x.is_floating_point() and not is_mask(x) for x in tensors_among(graph.inputs))
    spans: list[Span | None] = [None] * len(graph.inputs)
    if not plain:
        spans = looked_up(lambda *inputs: graph.run(inputs), graph.inputs)
    batches = []
    for size in sizes if graph.dynamic_batch else (0,):
        free, *careful = _from_free_to_careful(graph, graph.free.elsewhere(size), spans, generator)
        batches.append(free if plain else next((x for x in (free, *careful) if _runs(graph, x)), careful[-1]))
    return batches


def _from_free_to_careful(
    graph: Graph, sizes: dict[str, int], spans: list[Span | None], generator: torch.Generator
) -> list[tuple[Any, ...]]:
    """All inputs with other values; then masks as they are; then whole numbers, too; then all as they are."""
    shapes, same = shapes_at(graph, sizes), resized(graph, sizes)
    free, with_masks, with_numbers = [], [], []
    for x, shape, span, as_it_is in zip(graph.inputs, shapes, spans, same, strict=True):
        other = other_values(x, shape, span, generator) if isinstance(x, Tensor) else x
        mask = span is None and isinstance(x, Tensor) and is_mask(x)
        number = mask or not (isinstance(x, Tensor) and x.is_floating_point())
        free.append(other)
        with_masks.append(as_it_is if mask else other)
        with_numbers.append(as_it_is if number else other)
    return [tuple(free), tuple(with_masks), tuple(with_numbers), same]


def _runs(graph: Graph, inputs: tuple[Any, ...]) -> bool:
    """Whether the model takes these inputs, and gives numbers."""
    try:
        return not any(map(not_finite, graph.run(inputs)))
    except Exception:  # the user's model may refuse values in any way
        return False


def onnx_batches(written: Graph | EagerModel, seed: int) -> list[tuple[Any, ...]]:
    """One example, which is what most will run, and other inputs of another batch size; several, where what is
    written makes decisions, which one input may not show to have been taken for all."""
    if isinstance(written, EagerModel):
        others = (other_batches(written.graph, (), seed + number) for number in range(3))
        return [written.graph.inputs, *itertools.chain.from_iterable(others)]
    return [first_sample(written), *other_batches(written, (2,), seed)]
