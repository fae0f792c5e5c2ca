"""Axes other than the batch that may have any size: kept where the model lets them, refused with the line that fixes
them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_model.errors import InputError
from slim_model.graph.graph import Graph
from slim_model.graph.options import TracingOptions
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe


class Net(nn.Module):
    """(N, 3, H, W) -> (N, 4, H, W), and what a subclass does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.classes = nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


class Up(Net):
    """Halves and doubles: sides are even."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        z = F.interpolate(F.max_pool2d(y, 2), scale_factor=2.0)
        return self.last(torch.cat([y, z], 1)[:, 4:12])


class Counted(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return self.last(y.reshape(y.shape[0], 8, len(y[0, 0]), -1))


class Flat(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.classes(F.relu(self.first(x)).flatten(1))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(F.relu(y)) if y.sum() > 0 else y


class Demanding(Net):
    """Asks of its own class what its graph does not."""

    side = 8

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and x.shape[2] != self.side:
            raise ValueError(f"a side of {x.shape[2]} is not {self.side}")
        return super().forward(x)


class Words(nn.Module):
    """(N, L) and a mask (N, L) -> (N, L, 6); at most 12 words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Parameter(torch.randn(1, 12, 8))
        self.wide, self.last = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places[:, : ids.shape[1]]
        return self.last(F.relu(self.wide(x))) * mask[:, :, None]


PICTURE = (torch.ones(2, 3, 8, 8),)
TEXT = (torch.zeros(1, 7, dtype=torch.int64), torch.ones(1, 7))


def traced(net: type[nn.Module], inputs: tuple[Any, ...], *dynamic: str) -> Graph:
    return trace(net().eval(), inputs, dynamic=dynamic)


def named(graph: Graph) -> list[dict[int, str]]:
    return [{axis: str(size) for axis, size in sizes.items()} for sizes in graph.free.sizes]


def test_axes_are_free_and_have_names() -> None:
    graph = traced(Net, PICTURE, "2,3")
    assert named(graph) == [{0: "batch", 2: "height", 3: "width"}]
    assert graph.free.others == {"height": 7, "width": 9}
    assert graph.warnings == ()
    assert named(traced(Net, PICTURE)) == [{0: "batch"}]
    assert named(traced(Net, PICTURE, "3")) == [{0: "batch", 3: "width"}]


def test_axes_of_one_size_have_one_name_and_its_bounds_are_noted() -> None:
    graph = traced(Words, TEXT, "ids=1", "mask=1")
    assert named(graph) == [{0: "batch", 1: "length"}] * 2
    assert graph.free.others == {"length": 6}
    assert graph.warnings == ("length may be 2 to 12",)


def test_sizes_that_must_be_even_are_noted() -> None:
    graph = traced(Up, PICTURE, "2,3")
    assert graph.free.others == {"height": 6, "width": 10}
    assert [note.partition(" at ")[0] for note in graph.warnings] == [
        "not every height is taken: aten.cat.default takes no 7",
        "not every width is taken: aten.cat.default takes no 9",
    ]


@pytest.mark.parametrize("net", [Net, Up])
def test_the_proof_sees_a_second_size(net: type[nn.Module]) -> None:
    found = compile_model(net().eval(), PICTURE, Recipe.of(multiple_of=1, dynamic=(2, 3)))
    assert found.small.free == found.dense.free
    assert found.proof.masked_max_rel_error <= 1e-4
    assert found.slim_cost.params < found.dense_cost.params


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Counted, r"axis 2 \(height\) of 'x' .* at test_free_axes.py:\d+ in forward: return .*len\(y\[0, 0\]\)"),
        (Flat, r"height and width cannot be left free: aten.linear.default takes no \d+ at test_free_axes.py:\d+"),
        (Branching, r"\[2, 3\] of 'x' cannot be left free: torch.export stops at test_free_axes.py:\d+ in forward: "),
        (Demanding, r"does not run itself with height 7 .*a side of 7 is not 8 \(at test_free_axes.py:\d+ in forward"),
    ],
)
def test_what_fixes_an_axis_is_named(net: type[nn.Module], said: str) -> None:
    with pytest.raises(InputError, match=said):
        capture(net().eval(), PICTURE, TracingOptions(dynamic=("2,3",)))


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        ("y=2", "no input 'y'; its inputs are x"),
        ("4", "input 'x' has axes 0 to 3"),
        ("height", "axes with commas between"),
    ],
)
def test_axes_that_are_none(dynamic: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        capture(Net().eval(), PICTURE, TracingOptions(dynamic=(dynamic,)))


def test_an_example_of_size_one_is_refused() -> None:
    with pytest.raises(InputError, match="size 1 along axis 3"):
        traced(Net, (torch.ones(2, 3, 8, 1),), "3")


@pytest.mark.parametrize("given", ["2,3", (2, 3), ("2,3",), [2, 3]])
def test_how_axes_are_given(given: Any) -> None:
    assert TracingOptions(dynamic=given).dynamic == ("2,3",)
    assert TracingOptions(dynamic={"ids": 1, "mask": (0, 1)}).dynamic == ("ids=1", "mask=0,1")
    with pytest.raises(InputError, match="leave out one"):
        TracingOptions(static_batch=True, dynamic="0,2")


def test_a_program_keeps_its_axes_or_says_how_to_export_it() -> None:
    net = Net().eval()
    fixed = torch.export.export(net, PICTURE)
    with pytest.raises(InputError, match=r"dynamic_shapes=\(\{0: AUTO, 2: AUTO\},\)\) leaves it free"):
        trace(net, PICTURE, program=fixed, dynamic=("2",))
    auto = torch.export.Dim.AUTO
    free = torch.export.export(net, PICTURE, dynamic_shapes=({2: auto, 3: auto},))
    graph = trace(net, PICTURE, program=free)
    assert named(graph) == [{2: "height", 3: "width"}]
    assert graph.free.others == {"height": 7, "width": 9}


class Clips(Net):
    """(clips * 4, 3, H, W): four frames of a clip lie in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        n, c, h, w = y.shape
        return self.last(y.view(n // 4, 4, c, h, w).cumsum(1).view(n, c, h, w))


@pytest.mark.parametrize("frames", [4, 8])
def test_a_batch_that_must_be_a_multiple_is_fixed(frames: int) -> None:
    net, x = Clips().eval(), torch.ones(frames, 3, 8, 8)
    found = compile_model(net, (x,), Recipe.of(multiple_of=1))
    assert not found.dense.dynamic_batch
    assert found.proof.batches == (frames, frames)
    (note,) = found.warnings
    assert note.startswith(
        f"the batch size is fixed at the example's ({frames}x3x8x8:float32): aten.reshape.default takes"
    )
    assert "no batch of 1 at test_free_axes.py:" in note
    with pytest.raises(InputError, match=r"batch cannot be left free: aten.reshape.default takes no batch of 1"):
        capture(net, (x,), TracingOptions(dynamic=("0",)))
