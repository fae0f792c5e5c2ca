"""Boxes of outputs, and which of them another output tells of, too: by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slim_model.calling.boxes import BoxForm, Detections, detections, found_again, overlap, same_boxes

CORNERS = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 18], [20, 0, 24, 4]])
SCORES = torch.tensor([[0.9, 0.1], [0.2, 0.6], [0.1, 0.2]])
"""Of classes 0 and 1; the last box has too little of both."""


def centres(corners: Tensor) -> Tensor:
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)


def by_place(corners: Tensor = CORNERS, scores: Tensor = SCORES) -> Tensor:
    """(1, places, 4 + classes)"""
    return torch.cat([centres(corners), scores], 1)[None]


FORMS = {
    "centres, places last": (by_place().transpose(1, 2), BoxForm(2, overlapping=True)),
    "centres, by place": (by_place(), BoxForm(2, by_place=True)),
    "corners, one score and its class": (
        torch.cat([CORNERS, SCORES.max(1).values[:, None], torch.tensor([[0.0], [1.0], [1.0]])], 1)[None],
        BoxForm(None, by_place=True, corners=True),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_tell_the_same(name: str) -> None:
    (found,) = detections(*FORMS[name])
    assert torch.equal(found.boxes, CORNERS[:2])
    assert torch.equal(found.scores, torch.tensor([0.9, 0.6]))
    assert found.classes.tolist() == [0, 1]


def test_overlap() -> None:
    """Two of 2 x 1, half of each in the other; apart; without any area."""
    boxes = torch.tensor([[0.0, 0, 2, 1]])
    others = torch.tensor([[1.0, 0, 3, 1], [5, 5, 6, 6], [0, 0, 2, 1], [1, 0, 1, 0]])
    assert overlap(boxes, others)[0].tolist() == pytest.approx([1 / 3, 0, 1, 0])
    assert overlap(others[3:], others[3:]).tolist() == [[0]]


def test_places_that_tell_of_one_thing() -> None:
    """The lower of two of a class goes, if places overlap; one of another class stays."""
    corners, scores = CORNERS[[0, 0, 0]], torch.tensor([[0.5, 0.0], [0.9, 0.0], [0.0, 0.7]])
    (alone,) = detections(by_place(corners, scores), BoxForm(2, by_place=True, overlapping=True))
    assert alone.scores.tolist() == pytest.approx([0.9, 0.7])
    (every,) = detections(by_place(corners, scores), BoxForm(2, by_place=True))
    assert every.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])


def test_what_is_found_again() -> None:
    """A box of another class, one too far off, one that is told twice, and one that moved a little."""
    told = Detections(CORNERS, torch.ones(3), torch.tensor([0, 0, 1]))
    other = Detections(
        CORNERS[[0, 0, 1, 2]] + torch.tensor([0.5, 0, 0.5, 0]), torch.ones(4), torch.tensor([0, 0, 1, 1])
    )
    again, more = found_again(told, other)
    assert again.tolist() == [True, False, True]
    assert more == 2
    far = Detections(CORNERS + 3, told.scores, told.classes)
    assert not found_again(told, far)[0].any()
    nothing = Detections(CORNERS[:0], torch.ones(0), torch.ones(0, dtype=torch.int64))
    assert found_again(told, nothing)[1] == 0
    assert found_again(nothing, told)[1] == 3


def test_the_share_of_two_outputs() -> None:
    """Three boxes of both together, of which one is of both."""
    output, other = torch.cat([by_place(), by_place()]), torch.cat([by_place(), by_place()])
    other[:, 1, 0] += 100
    form = BoxForm(2, by_place=True)
    assert same_boxes(output, output, form) == 1
    assert same_boxes(output, other, form) == pytest.approx(1 / 3)
    assert same_boxes(0 * output, 0 * output, form) is None
