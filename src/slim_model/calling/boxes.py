"""How an output tells boxes, where its library says so, and which of them another output tells, too; no labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_SCORE = 0.25
"""Of what is told at all; what Ultralytics shows."""
SAME = 0.5
"""Intersection over union from which two boxes are of one thing (PASCAL VOC, Everingham et al. 2010)."""
_ONE_THING = 0.7
"""Of two boxes of one output and class, from which the lower one is left out."""
_MOST = 300


@dataclass(frozen=True, slots=True)
class BoxForm:
    """The first output has ``values`` along axis 1 and places along axis 2, or the other way round where it is
    ``by_place``: four of a box, then others.

    A box is its centre, width and height, or two of its ``corners``. Behind it stand the scores of ``classes`` classes;
    where that is None, one score and the number of the class. ``overlapping``: several places may tell of the same
    thing, and the best is meant."""

    classes: int | None
    by_place: bool = False
    corners: bool = False
    overlapping: bool = False


class Detections(NamedTuple):
    """Of one sample, the best first: ``boxes`` (n, 4) as left, top, right, bottom; ``scores`` and ``classes`` (n,)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def detections(output: Tensor, form: BoxForm) -> Iterator[Detections]:
    """Those of each sample that have LEAST_SCORE, at most 300; of overlapping ones of a class the best."""
    for rows in output if form.by_place else output.transpose(1, 2):
        if form.classes is None:
            scores, classes = rows[:, 4], rows[:, 5].long()
        else:
            scores, classes = rows[:, 4 : 4 + form.classes].max(1)
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= LEAST_SCORE][:_MOST]
        boxes = rows[order, :4] if form.corners else _corners(rows[order, :4])
        found = Detections(boxes, scores[order], classes[order])
        yield _without_doubles(found) if form.overlapping else found


def found_again(told: Detections, other: Detections) -> tuple[Tensor, int]:
    """bool ``(n,)``: of which of ``told`` the ``other`` tells, too, with the same class and a box that overlaps by
    SAME; and how many it tells of besides. Each is taken once, the best of ``other`` first."""
    share = overlap(told.boxes, other.boxes)
    share[told.classes[:, None] != other.classes] = 0
    again = torch.zeros(len(told.boxes), dtype=torch.bool)
    for column in share.T:
        left = column.masked_fill(again, 0)
        if len(left) and float(left.max()) >= SAME:
            again[left.argmax()] = True
    return again, len(other.boxes) - int(again.sum())


def same_boxes(output: Tensor, other: Tensor, form: BoxForm) -> float | None:
    """Of what either output tells of, the share of which both do; None where neither tells of anything."""
    pairs = zip(detections(output, form), detections(other, form), strict=True)
    found = [found_again(told, besides) for told, besides in pairs]
    count = sum(len(again) + more for again, more in found)
    return sum(int(again.sum()) for again, _ in found) / count if count else None


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """``(n, m)``: intersection over union. ``[0, 0, 2, 1], [1, 0, 3, 1] -> 1/3``"""
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    both = (high - low).clamp_min(0).prod(2)
    whole = _area(boxes)[:, None] + _area(others) - both
    return torch.where(whole > 0, both / whole.clamp_min(1e-12), 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def _corners(boxes: Tensor) -> Tensor:
    """From centre, width and height."""
    half = boxes[:, 2:] / 2
    return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def _without_doubles(found: Detections) -> Detections:
    """Greedy suppression of what is not the greatest, in each class."""
    covers = (overlap(found.boxes, found.boxes) > _ONE_THING) & (found.classes[:, None] == found.classes)
    kept = torch.ones(len(found.boxes), dtype=torch.bool)
    for number in range(len(kept)):
        if kept[number]:
            kept[number + 1 :] &= ~covers[number, number + 1 :].cpu()
    return Detections(*(x[kept.to(x.device)] for x in found))
