"""The user's data as feeds of an ONNX file: what is calibrated on, and what is held out to judge by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from slim_model.data.batches import Data
from slim_model.data.holdout import Part, Parts, TakesBatches, split_off_held_out
from slim_model.errors import InputError
from slim_model.graph.tensor_trees import tensors_among
from slim_model.quantizing.calibrate import Feed

FEW = 32
"""Below so many samples the ranges of activations are guesses."""
_MOST_CALIBRATED = 256
_AT_A_TIME = 8
"""Activations of so many samples are in memory at once."""


@dataclass(frozen=True, slots=True)
class Samples:
    """``fitted``: calibrated on; ``held``: never calibrated on, with ``labels`` where the data has class numbers for
    all. ``count`` and ``held_count`` are samples."""

    fitted: tuple[Feed, ...]
    held: tuple[Feed, ...]
    labels: np.ndarray | None
    count: int
    held_count: int

    @property
    def notes(self) -> list[str]:
        total = self.count + self.held_count
        few = f"int8 was calibrated on {self.count} samples; give {FEW} or more in all, for ranges that hold"
        return [few] if total < FEW else []


def collect(data: Data, model: TakesBatches, names: Sequence[str]) -> Samples:
    """At most 256 samples to calibrate on, and every fifth of all, which is held out. ``names``: of the file's inputs,
    in the order of the data's. Raises InputError where nothing can be held out."""
    fitted, held_out = split_off_held_out(data, model)
    learned, judged = list(_learned(fitted)), list(held_out())
    if not learned or not judged:
        raise InputError(
            f"{data.name} gives too few samples for int8: every fifth is held out to judge by, and {FEW} or more are "
            "needed to calibrate. Give more data."
        )
    labels = [part.labels for part in judged]
    numbers = [x.flatten().numpy() for x in labels if x is not None and not x.is_floating_point()]
    whole = len(numbers) == len(judged) and all(len(x) == p.samples for x, p in zip(numbers, judged, strict=True))
    return Samples(
        fitted=tuple(feed for part in learned for feed in _feeds(part, model, names)),
        held=tuple(feed for part in judged for feed in _feeds(part, model, names)),
        labels=np.concatenate(numbers) if whole else None,
        count=sum(part.samples for part in learned),
        held_count=sum(part.samples for part in judged),
    )


def _learned(fitted: Parts) -> Iterator[Part]:
    """The first parts, until there is enough to calibrate on."""
    for part in fitted():
        yield part
        if part.first + part.samples >= _MOST_CALIBRATED:
            return


def _feeds(part: Part, model: TakesBatches, names: Sequence[str]) -> Iterator[Feed]:
    size = _AT_A_TIME if model.dynamic_batch else part.samples
    for start in range(0, part.samples, size):
        rows = [_rows(x, start, size, part.samples) for x in tensors_among(part.inputs)]
        yield {name: x.detach().cpu().numpy() for name, x in zip(names, rows, strict=False)}


def _rows(x: Tensor, start: int, size: int, samples: int) -> Any:
    return x[start : start + size] if x.dim() and len(x) == samples else x
