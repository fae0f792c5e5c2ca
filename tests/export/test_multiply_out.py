"""Two layers with nothing between them are one in the file, where that is less work, and compute what they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_model.commands.slim import run_job
from slim_model.export.multiply_out import multiplied_out
from slim_model.export.to_onnx import to_onnx
from slim_model.loading.source import Source, SourceOptions
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from small_nets import trained


class Pairs(nn.Module):
    """A kernel with a step and a BatchNorm, then 1x1; linear layers on tokens; linear layers on rows, one without a
    bias."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.norm = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.point = nn.Conv2d(12, 8, 1)
        self.token, self.tokens = nn.Linear(8, 20), nn.Linear(20, 6)
        self.row, self.rows = nn.Linear(6, 40, bias=False), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.point(self.norm(self.kernel(x))))
        x = self.tokens(self.token(x.flatten(2).transpose(1, 2)))
        return self.rows(self.row(F.relu(x.mean(1))))


class Apart(nn.Module):
    """No pair may be one layer: each of these says why."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)  # the product is larger
        self.point, self.kernel = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 2, 3, padding=1)  # zeros at its border
        self.depthwise, self.behind = nn.Conv2d(2, 12, 3, groups=2), nn.Conv2d(12, 2, 1)
        self.step, self.skips = nn.Conv2d(2, 30, 1), nn.Conv2d(30, 2, 1, stride=2)  # leaves places out
        self.twice, self.head = nn.Linear(2, 30), nn.Linear(30, 2)  # read by two

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.wide(self.narrow(x)))
        x = F.relu(self.kernel(self.point(x)))
        x = F.relu(self.behind(self.depthwise(x)))
        x = F.relu(self.skips(self.step(x)))
        y = self.twice(x.mean((2, 3)))
        return self.head(y), y


def written(model: nn.Module, x: Tensor, place: Path) -> list[str]:
    to_onnx(capture(model, (x[:2],)), place, opset=None, metadata={})
    (name,) = (value.name for value in onnx.load(place).graph.input)
    expected = model(x)
    found = onnxruntime.InferenceSession(place).run(None, {name: x.numpy()})
    for one, other in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
        assert np.abs(one.detach().numpy() - other).max() < 1e-5 * float(one.abs().max())
    return [node.op_type for node in onnx.load(place).graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]


def test_pairs_are_one_layer(tmp_path: Path) -> None:
    place = tmp_path / "net.onnx"
    assert written(trained(Pairs()), torch.randn(3, 3, 8, 8), place) == ["Conv", "MatMul", "Gemm"]
    (note,) = multiplied_out(place)
    assert "kernel, point: 420 -> 216; token, tokens: 280 -> 48; row, rows: 440 -> 30 weights" in note
    floats = [x for x in onnx.load(place).graph.initializer if x.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(tensor.dims)) for tensor in floats) == 216 + 8 + 48 + 6 + 30 + 5


def test_a_row_of_layers_is_one(tmp_path: Path) -> None:
    model = trained(nn.Sequential(nn.Linear(4, 30), nn.Linear(30, 20), nn.Linear(20, 3)))
    assert written(model, torch.randn(5, 4), tmp_path / "net.onnx") == ["Gemm"]


def test_what_is_no_pair_stays(tmp_path: Path) -> None:
    place = tmp_path / "net.onnx"
    assert len(written(trained(Apart()), torch.randn(3, 8, 9, 9), place)) == 10
    assert multiplied_out(place) == []


@pytest.mark.parametrize("low_rank", [False, True])
def test_the_report_says_so(low_rank: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 24), nn.Linear(24, 4))
    torch.save(trained(model), tmp_path / "in.pt")
    source = Source(tmp_path / "in.pt", SourceOptions(inputs=("2x16",)))
    recipe = Recipe.of(0.25, bench=False, multiple_of=1, low_rank=low_rank)
    report = run_job(Job(source, tmp_path / "out.onnx", recipe), lambda stage: None)
    assert report is not None
    (note,) = (note for note in report.warnings if note.startswith("multiplied out"))
    assert "3" in note.partition("in place of two: ")[2]
