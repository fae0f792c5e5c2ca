"""A batch size that is fixed is noted with what fixed it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slim_model.errors import InputError
from slim_model.graph.trace import trace
from slim_model.proof.check_trace import check_trace


class Net(nn.Module):
    """(N, 4) -> (N, 4), and what a subclass does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("two_rows", torch.ones(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Counted(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y.reshape(len(y), 2, 2)


class MadeANumber(Net):
    def forward(self, x: Tensor) -> Tensor:
        rows = int(x.shape[0])
        return self.layer(x).reshape(rows, 2, 2)


class Written(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(2, 2, 2)


class WithABuffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.two_rows


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y if y.sum() > 0 else -y


class OfAsMany(Net):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0]).reshape(len(inputs[0]), 2, 2)


class OfTwo(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x) + y


def notes(net: nn.Module, *rows: int, **options: object) -> str:
    """What is noted of ``net``, traced on inputs of so many rows each."""
    inputs = tuple(torch.ones(n, 4) for n in rows)
    return "; ".join(trace(net, inputs, **options).warnings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize(
    ("net", "line"),
    [
        (Counted, "return y.reshape(len(y), 2, 2)"),
        (MadeANumber, "rows = int(x.shape[0])"),
        (OfAsMany, "return self.layer(inputs[0]).reshape(len(inputs[0]), 2, 2)"),
    ],
)
def test_the_line_is_named_that_makes_it_a_number(net: type[Net], line: str, rows: int) -> None:
    said = notes(net(), rows)
    assert said.startswith(f"the batch size is fixed at the example's ({rows}x4:float32): it becomes a number at test_")
    assert f"in forward: {line}. x.shape[0] and -1 leave it free" in said


@pytest.mark.parametrize(("net", "op"), [(Written, "aten.view.default"), (WithABuffer, "aten.add.Tensor")])
def test_the_operator_is_named_that_takes_no_other(net: type[Net], op: str) -> None:
    """Their size is found out inside PyTorch."""
    said = notes(net(), 2)
    assert f"{op} takes no other at test_fixed_axes.py:" in said
    assert "in forward: return self.layer(x)" in said


def test_inputs_of_several_sizes_have_no_batch() -> None:
    assert notes(OfTwo(), 2, 1).endswith("(2x4:float32, 1x4:float32): the first axes of its inputs differ in size")


def test_a_run_that_is_followed_says_where_the_export_stopped() -> None:
    said = notes(Branching(), 2)
    assert said.startswith("traced from one run of the example")
    assert "(torch.export stops at test_fixed_axes.py:" in said
    assert "in forward: return y if y.sum() > 0 else -y)" in said


def test_what_was_asked_for_is_no_fault_of_the_model() -> None:
    said = notes(Net(), 2, static_batch=True)
    assert said == "the batch size is fixed at the example's (2x4:float32): you asked for it (--static-batch)"
    assert notes(Net(), 2) == ""


def test_of_a_program_it_is_said_how_to_export_it() -> None:
    net, inputs = OfTwo().eval(), (torch.ones(2, 4), torch.ones(2, 4))
    fixed = torch.export.export(net, inputs)
    (said,) = trace(net, inputs, program=fixed).warnings
    assert "the program was exported so" in said
    advice = said.partition("dynamic_shapes=")[2].removesuffix(") leaves it free")
    assert advice == "({0: AUTO}, {0: AUTO})"
    free = torch.export.export(net, inputs, dynamic_shapes=eval(advice, {"AUTO": torch.export.Dim.AUTO}))
    assert trace(net, inputs, program=free).warnings == ()


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        quiet = torch.nn.functional.dropout(self.layer(x), 0.5, training=False)
        return quiet + torch.randn_like(x)


class Counting(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


def test_a_random_forward_is_refused_with_its_line() -> None:
    x = torch.ones(2, 4)
    noisy = Noisy().eval()
    with pytest.raises(InputError, match=r"aten.randn_like.default draws random numbers at test_fixed_axes.py:\d+ in"):
        check_trace(noisy, trace(noisy, (x,)))
    counting = Counting().eval()
    with pytest.raises(InputError, match=r"other outputs .* on the same input, .* a counter"):
        check_trace(counting, trace(counting, (x,)))
