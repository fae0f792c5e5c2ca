"""Facts about one node, and about the nests of tensors that a model takes and gives."""

from __future__ import annotations

import torch
from torch import fx

from slim_model.graph.nodes import packet_of
from slim_model.graph.tensor_trees import batch_of, copy_tensors, tensors_among

aten = torch.ops.aten


def test_an_operator_is_the_same_in_each_of_its_overloads() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert packet_of(graph.call_function(aten.add.Tensor, (x, x))) is aten.add
    assert packet_of(graph.call_function(aten.add.Scalar, (x, 1))) is aten.add
    assert packet_of(graph.call_function(aten.add_.Tensor, (x, x))) is aten.add_
    assert packet_of(graph.call_function(max, (x, 1))) is None
    assert packet_of(x) is None


def test_the_batch_is_axis_0_of_the_first_tensor_that_has_one() -> None:
    assert batch_of((3, torch.tensor(7), torch.zeros(5, 2), torch.zeros(4))) == 5
    assert batch_of((torch.zeros(0, 2),)) == 0
    assert batch_of((torch.tensor(7), None)) == 1


def test_tensors_are_found_in_nests_and_copied_with_them() -> None:
    a, b = torch.zeros(2), torch.ones(3)
    nest = {"first": [a, 4], "second": (b, None)}
    assert [id(x) for x in tensors_among(nest)] == [id(a), id(b)]
    again = copy_tensors(nest)
    again["first"][0].add_(1)
    assert again["first"][1] == 4
    assert again["second"][1] is None
    assert torch.equal(again["second"][0], b)
    assert torch.equal(a, torch.zeros(2))
