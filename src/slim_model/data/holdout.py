"""A part of the calibration samples that is held out, to judge a change by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slim_model.data.batches import Batch, Data
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import batch_of

_HELD_OUT = 5


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs of one run; ``first`` numbers its first sample within the part."""

    inputs: tuple[Any, ...]
    samples: int
    first: int


Parts = Callable[[], Iterator[Part]]


def split_off_held_out(data: Data, graph: Graph) -> tuple[Parts, Parts]:
    """(fitted on, held out). Which samples are held out does not depend on how they fall into batches; where the model
    takes one batch size only, whole batches are."""

    def part(*, held_out: bool) -> Iterator[Part]:
        first = number = 0
        for at, batch in enumerate(data.batches()):
            if graph.dynamic_batch:
                mine = (torch.arange(number, number + batch.samples) % _HELD_OUT == _HELD_OUT - 1) == held_out
                inputs, count = _chosen(batch, mine), int(mine.sum())
            else:
                whole = batch.samples == batch_of(graph.inputs) and (at % _HELD_OUT == _HELD_OUT - 1) == held_out
                inputs, count = batch.inputs, batch.samples * whole
            number += batch.samples
            if count:
                yield Part(inputs, count, first)
                first += count

    return lambda: part(held_out=False), lambda: part(held_out=True)


def _chosen(batch: Batch, mine: Tensor) -> tuple[Any, ...]:
    return tuple(x[mine.to(x.device)] if isinstance(x, Tensor) and x.dim() else x for x in batch.inputs)
