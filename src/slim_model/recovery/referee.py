"""The error of a small graph's outputs on samples that are held out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.calling.boxes import BoxForm, detections, found_again
from slim_model.data.holdout import Parts
from slim_model.errors import InputError
from slim_model.graph.graph import Graph


@dataclass(frozen=True, slots=True)
class Verdict:
    """``error``: squared, over all outputs, relative to their spread: 1 for a model that always gives the mean. NaN
    where nothing is held out or nothing varies. ``agrees`` bool ``(answers,)``: the answer is that of the dense graph:
    the class of a sample, or a box (``calling.boxes``), and ``more`` boxes are told that it does not tell. None where
    the outputs are neither."""

    error: float
    agrees: Tensor | None = None
    more: int = 0

    @property
    def agreement(self) -> float | None:
        """The share of all answers of either that both give; None where there is none."""
        count = 0 if self.agrees is None else len(self.agrees) + self.more
        return float(self.agrees.sum()) / count if self.agrees is not None and count else None

    def better_than(self, other: Verdict) -> bool:
        """A smaller error, and not clearly fewer answers that agree: of those that change sides no more fall than rise
        but for two standard deviations. (Values nearer by far may all have one class.)"""
        if not (math.isnan(self.error) or self.error < other.error):
            return False
        if self.agrees is None or other.agrees is None:
            return True
        lost, won = (int(x.sum()) for x in (other.agrees & ~self.agrees, self.agrees & ~other.agrees))
        return lost - won <= 2 * math.sqrt(lost + won)


class Referee:
    """Compares outputs with those of the dense graph on what is held out; these are kept."""

    def __init__(self, dense: Graph, held_out: Parts) -> None:
        self.held_out, self.boxes = held_out, dense.outputs.boxes
        self.expected = [_floating(dense.run(part.inputs)) for part in held_out()]

    def error(self, small: Graph) -> float:
        return self.judge(small).error

    def judge(self, small: Graph) -> Verdict:
        if not self.expected:
            return Verdict(math.nan)
        total = 0.0
        for number in range(len(self.expected[0])):
            values = torch.cat([outputs[number].reshape(-1) for outputs in self.expected]).double()
            total += float((values - values.mean()).square().sum())
        wrong, agrees, more = 0.0, list[Tensor](), 0
        for part, expected in zip(self.held_out(), self.expected, strict=True):
            outputs = _floating(small.run(part.inputs))
            wrong += sum(
                float((a.double() - b.double()).square().sum()) for a, b in zip(outputs, expected, strict=True)
            )
            for same, besides in _answers(expected, outputs, self.boxes):
                agrees.append(same)
                more += besides
        error = wrong / total if total else math.nan
        return Verdict(math.inf if math.isnan(wrong) else error, torch.cat(agrees) if agrees else None, more)


def _answers(expected: list[Tensor], outputs: list[Tensor], boxes: BoxForm | None) -> Iterator[tuple[Tensor, int]]:
    """Which answers are the same, and how many there are besides."""
    if boxes is not None:
        told = (detections(x[0].float().cpu(), boxes) for x in (expected, outputs))
        yield from itertools.starmap(found_again, zip(*told, strict=True))
    elif _is_classes(expected):
        yield outputs[0].argmax(1) == expected[0].argmax(1), 0


def _is_classes(outputs: list[Tensor]) -> bool:
    return len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1


def _floating(outputs: list[Tensor]) -> list[Tensor]:
    floating = [x for x in outputs if x.is_floating_point()]
    if not floating:
        raise InputError("the model has no output of real numbers, so nothing can be recovered: --recover none.")
    return floating
