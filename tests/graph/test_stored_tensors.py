"""Stored tensors: which are one and the same, and what follows from them alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_model.coupling.couple import couple
from slim_model.graph.stored_tensors import SWITCHES, Constants, shared_names, storage_key
from slim_model.graph.trace import trace
from slim_model.ops import OPS
from slim_model.simplifying.simplify import simplify
from small_nets import Residual, images

DEVICES = ("cpu", "meta")


def drawn(*shape: int, device: str) -> Tensor:
    return torch.empty(shape, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(4, 4), (3,), (), (0, 5)], ids=str)
def test_a_tensor_is_itself_and_no_other(device: str, shape: tuple[int, ...]) -> None:
    one, other = drawn(*shape, device=device), drawn(*shape, device=device)
    assert storage_key(one) == storage_key(one.detach()) == storage_key(nn.Parameter(one).data)
    assert storage_key(one) != storage_key(other)
    assert storage_key(one) != storage_key(one.clone())


@pytest.mark.parametrize("device", DEVICES)
def test_what_reads_the_same_memory_otherwise_is_another_tensor(device: str) -> None:
    square = drawn(4, 4, device=device)
    others = [square.t(), square[:2], square[2:], square[:, ::2], square.view(16), square.view(torch.int32)]
    keys = [storage_key(tensor) for tensor in (square, *others)]
    assert len(set(keys)) == len(keys)
    assert storage_key(square.t().t()) == storage_key(square)


@pytest.mark.parametrize("device", DEVICES)
def test_shared_names_are_those_behind_the_first(device: str) -> None:
    a, b = drawn(4, 4, device=device), drawn(4, 4, device=device)
    tensors = {"a": a, "b": b, "turned": a.t(), "again": a.detach(), "b_again": b, "turned_again": a.t()}
    assert shared_names(tensors) == {"again": "a", "b_again": "b", "turned_again": "turned"}


def test_the_channels_of_a_model_without_values_are_those_of_the_model() -> None:
    """The walk looks for shared weights; on the meta device all of one shape would be shared by their address."""
    graph = simplify(trace(Residual().eval(), (images(),)))
    empty = graph.with_tensors({name: tensor.to("meta") for name, tensor in graph.tensors.items()})
    whole, bare = couple(graph), couple(empty)
    assert not bare.labelled.shared
    assert np.array_equal(whole.component, bare.component)
    assert [group.name for group in whole.groups] == [group.name for group in bare.groups]


# -- what follows from them -----------------------------------------------------------------------------------------


class Computed(nn.Module):
    """Orders that follow from a stored one: plainly, written to afterwards, drawn at random, and behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        plain = self.order + 1
        written = self.order + 2
        written[0] = 4
        drawn = self.order + torch.randint(0, 2, (3,))
        dropped = F.dropout(self.order + 0.5, training=self.training)
        return x + plain, x + written, x + drawn, x + dropped


def test_only_what_is_the_same_in_every_run_is_a_constant() -> None:
    graph = trace(Computed().eval(), (torch.zeros(2, 3),))
    constants = Constants(graph)
    (output,) = graph.module.graph.find_nodes(op="output")
    operands = [node.args[1] for node in output.args[0]]
    values = [constants.of(node) for node in operands]
    assert [None if value is None else value.tolist() for value in values] == [
        [3, 1, 2],
        None,  # a look at it ahead of the writing is no constant
        None,
        [2.5, 0.5, 1.5],
    ]


def test_the_switch_of_every_random_operator_is_known() -> None:
    """An operator that dropout's row calls off in evaluation is not random there."""
    switched = {key: row.training_switch for key, row in OPS.items() if row.training_switch is not None}
    for key, switch in switched.items():
        one = isinstance(key, torch._ops.OpOverload)
        overloads = [key] if one else [getattr(key, name) for name in key.overloads()]
        if any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads):
            assert switch.argument in SWITCHES, key
