"""Autocast regions in a forward are computed in float32, and said; whoever runs the small module has them still."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from slim_model.commands.slim import run_job
from slim_model.export.options import OutputOptions
from slim_model.graph.autocast import in_float32
from slim_model.loading.source import Source
from slim_model.pipeline.compile import compile_model
from slim_model.progress import say_nothing
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from small_nets import error, trained


class Inside(nn.Module):
    """A region that ends before the head, with a cast behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.fc(x.float().mean((2, 3)))


class Whole(Inside):
    """The output comes from the region."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Decorated(Inside):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class SwitchedOff(Inside):
    """As code does that is itself called in a region."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


SAID = "its autocast regions (bfloat16) are computed in float32"


@pytest.mark.parametrize("net", [Inside, Whole, Decorated])
def test_regions_are_in_float32_and_said(net: type[nn.Module]) -> None:
    model, x = trained(net()), torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    compiled = compile_model(model, (x,), Recipe.of(0.5, multiple_of=1))
    assert any(note.startswith(SAID) for note in compiled.warnings)
    small = make_small_module(model, compiled.small)
    assert small.own
    with torch.no_grad():
        (given,) = compiled.small.run((x,))
        rounded = small.module(x)
        with in_float32():
            exact = small.module(x)
    assert given.dtype is exact.dtype is torch.float32
    assert error(given, exact) <= 1e-6
    assert error(given, rounded.float()) > 1e-4, "the module that is handed out has its regions still"


def test_a_region_that_is_switched_off_is_none() -> None:
    x = torch.randn(2, 3, 9, 9)
    assert not any("autocast" in note for note in compile_model(trained(SwitchedOff()), (x,), Recipe.of()).warnings)


@pytest.mark.parametrize("net", [Inside, Whole])
def test_a_program_that_was_exported_with_regions(net: type[nn.Module], tmp_path: Path) -> None:
    """The types that it notes of its values, and what it checks of them, are those of the region."""
    x = torch.randn(2, 3, 9, 9)
    torch.export.save(torch.export.export(trained(net()), (x,)), tmp_path / "in.pt2")
    out, saved = tmp_path / "out.onnx", tmp_path / "small.pt2"
    job = Job(Source(tmp_path / "in.pt2"), out, Recipe.of(0.5, multiple_of=1, bench=False), OutputOptions(save=saved))
    report = run_job(job, say_nothing)
    assert report is not None
    assert any(note.startswith(SAID) for note in report.warnings)
    kinds = {value.type.tensor_type.elem_type for value in onnx.load(out).graph.output}
    assert kinds == {onnx.TensorProto.FLOAT}
    assert torch.export.load(saved).module()(x).dtype is torch.float32
