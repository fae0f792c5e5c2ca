"""A stored choice of channels is a constant; sizes that depend on values are followed, or refused with the line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slim_model.errors import InputError
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe


class Net(nn.Module):
    """(N, 3, 6, 6) -> (N, 4), of every other of 16 channels, as earlier pruning leaves it."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 4)
        self.register_buffer("kept", torch.arange(16) % 2 == 0)
        self.register_buffer("mask", (torch.arange(16) % 2 == 0).float())
        self.wide = nn.Linear(16, 4)

    def pick(self, x: Tensor) -> Tensor:
        return x[:, self.kept]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.pick(torch.relu(self.first(x))))).mean((2, 3)))


class Numbers(Net):
    def pick(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.kept.nonzero().squeeze(1))


class Compared(Net):
    def pick(self, x: Tensor) -> Tensor:
        return x[:, torch.where(self.mask > 0.5)[0]]


class Otherwise(Net):
    def pick(self, x: Tensor) -> Tensor:
        return x[:, ~self.kept, ...]


@pytest.mark.parametrize("net", [Net, Numbers, Compared, Otherwise])
def test_a_stored_choice_is_a_constant(net: type[nn.Module]) -> None:
    model = net().eval()
    found = compile_model(model, (torch.randn(2, 3, 6, 6),), Recipe.of(multiple_of=1))
    assert found.dense.dynamic_batch
    assert found.warnings == ()
    assert dict(found.plan.widths) == {16: 8, 12: 6}
    assert torch.equal(model.kept, torch.arange(16) % 2 == 0)


class Counting(Net):
    """Writes to what it stores."""

    def pick(self, x: Tensor) -> Tensor:
        self.mask += 1
        return x[:, :8] * self.mask[:8, None, None]


def test_what_is_written_to_is_no_constant() -> None:
    model, x = Counting().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, (x,))
    assert not any(torch.equal(value, model.mask + 1) for name, value in graph.tensors.items() if name != "mask")


class Chosen(Net):
    """Sums what is positive."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(torch.relu(self.first(x)).mean((2, 3)))
        return y + y[y > 0].sum()


class Scattered(Net):
    """Sums rows by their largest column, as graph nets do by a node's number."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(torch.relu(self.first(x)).mean((2, 3)))
        number = y.argmax(1)
        return torch.zeros(int(number.max()) + 1, 4).index_add(0, number, y)


@pytest.mark.parametrize("net", [Chosen, Scattered])
def test_sizes_that_depend_on_values_are_followed(net: type[nn.Module]) -> None:
    found = compile_model(net().eval(), (torch.randn(2, 3, 6, 6),), Recipe.of(multiple_of=1))
    assert "test_stored_flags.py:" in found.warnings[0]
    assert found.warnings[0].startswith("traced from one run of the example")
    assert found.slim_cost.params < found.dense_cost.params


def test_a_program_with_such_sizes_is_refused_with_its_line() -> None:
    model, x = Chosen().eval(), torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (x,))
    with pytest.raises(
        InputError, match=r"how much aten\.index\.Tensor gives depends on values at test_stored_flags\.py"
    ):
        trace(model, (x,), program=program)
    assert trace(model, (x,)).decisions, "the PyTorch model, of which one run is followed"
