"""The record of a walk: all of a small net, counted by hand; nobody can change it; a replay repeats its choices."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim_model.graph.trace import trace
from slim_model.labels.label import label
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import Birth, Replay
from slim_model.labels.walk import Walk
from slim_model.ops import flow_of
from slim_model.simplifying.simplify import simplify


class Skip(nn.Module):
    """(N, 2) -> 3 -> 3, added to what came in, -> 1 number. ``head`` is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(2, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.inner(x)
        return self.head(x) + self.head(-x)


@pytest.fixture(scope="module")
def labelled() -> Labelled:
    graph = simplify(trace(Skip().eval(), (torch.randn(2, 2),)))
    return label(Walk(graph), flow_of)


def test_every_position_of_every_axis_is_born_once(labelled: Labelled) -> None:
    assert list(labelled.births) == [
        Birth(1, 3, "stem.weight", 0),
        Birth(4, 2, "stem.weight", 1),
        Birth(6, 3, "stem.bias", 0),
        Birth(9, 3, "inner.weight", 0),
        Birth(12, 3, "inner.weight", 1),
        Birth(15, 3, "head.weight", 1),  # its axis of one position cannot lose it
    ]
    assert labelled.labels == 18
    assert [b.axis for b in labelled.births_of("inner.weight")] == [0, 1]
    assert not labelled.births_of("nothing")


def test_ties_name_the_operator(labelled: Labelled) -> None:
    """Of each tie its first labels: bias with weight, what is read with what was made, both sides of the sum."""
    ties = [(int(left[0]), int(right[0]), str(node.target)) for left, right, node in labelled.ties]
    assert ties == [
        (1, 6, "aten.linear.default"),
        (1, 12, "aten.linear.default"),
        (1, 9, "aten.add.Tensor"),
        (1, 15, "aten.linear.default"),
        (1, 15, "aten.linear.default"),
    ]
    assert [made.labels.tolist() for made in labelled.made] == [[1, 2, 3], [9, 10, 11]]
    assert [pin.labels.tolist() for pin in labelled.pins] == [[4, 5]], "the two numbers of the input are fixed"


def test_the_record_cannot_be_changed(labelled: Labelled) -> None:
    node = next(iter(labelled.values))
    tables: tuple[Any, ...] = (labelled.values, labelled.choices, labelled.shared, labelled.pinned_nodes)
    for table in tables:
        with pytest.raises(TypeError):
            table[node] = None
    for name in ("births", "ties", "pins", "read", "made", "pieces", "whole_blocks", "unknown"):
        assert isinstance(getattr(labelled, name), tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        labelled.labels = 0  # type: ignore[misc]


class Grouped(nn.Module):
    """Four groups of one input and two outputs: whole groups go, which is a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 8, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.first(x)).sum(1)


def test_a_replay_repeats_the_choices() -> None:
    graph = simplify(trace(Grouped().eval(), (torch.randn(2, 2, 5),)))
    dense = label(Walk(graph), flow_of)
    assert dense.choices["conv1d_1"] == (True, True), "it is grouped, and whole groups go"
    born = {(b.owner, b.axis): torch.arange(b.start, b.start + b.size, dtype=torch.int32) for b in dense.births}
    again = label(Walk(graph, replay=Replay(born, dense.choices, {})), flow_of)
    assert again.choices == dense.choices
    assert not again.births, "labels of a replay are given"
    parts = label(Walk(graph, replay=Replay(born, dense.choices | {"conv1d_1": (True, False)}, {})), flow_of)
    assert parts.choices["conv1d_1"] == (True, False)
    assert len(parts.ties) != len(again.ties) == len(dense.ties)
