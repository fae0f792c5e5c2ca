"""A part of the calibration samples that is held out, to judge a change by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slim_model.data.batches import Batch, Data
from slim_model.graph.tensor_trees import batch_of

_HELD_OUT = 5


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs of one run; ``first`` numbers its first sample within the part. ``labels``: where the data has any."""

    inputs: tuple[Any, ...]
    samples: int
    first: int
    labels: Tensor | None = None


class TakesBatches(Protocol):
    """What is run on batches, a ``Graph`` among them: with example inputs, and a batch of any size or of theirs."""

    @property
    def dynamic_batch(self) -> bool: ...

    @property
    def inputs(self) -> tuple[Any, ...]: ...

    @property
    def input_names(self) -> tuple[str, ...]: ...


Parts = Callable[[], Iterator[Part]]


def split_off_held_out(data: Data, graph: TakesBatches) -> tuple[Parts, Parts]:
    """(fitted on, held out). Which samples are held out does not depend on how they fall into batches; where the model
    takes one batch size only, whole batches are."""

    def part(*, held_out: bool) -> Iterator[Part]:
        first = number = 0
        for at, batch in enumerate(data.batches()):
            if graph.dynamic_batch:
                mine = (torch.arange(number, number + batch.samples) % _HELD_OUT == _HELD_OUT - 1) == held_out
                inputs, count = _chosen(batch, mine), int(mine.sum())
                labels = batch.labels if batch.labels is None else batch.labels[mine.to(batch.labels.device)]
            else:
                whole = batch.samples == batch_of(graph.inputs) and (at % _HELD_OUT == _HELD_OUT - 1) == held_out
                inputs, count, labels = batch.inputs, batch.samples * whole, batch.labels
            number += batch.samples
            if count:
                yield Part(inputs, count, first, labels)
                first += count

    return lambda: part(held_out=False), lambda: part(held_out=True)


def _chosen(batch: Batch, mine: Tensor) -> tuple[Any, ...]:
    return tuple(x[mine.to(x.device)] if isinstance(x, Tensor) and x.dim() else x for x in batch.inputs)
