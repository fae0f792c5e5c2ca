"""A slice of a whole axis is left out, also where it is written to."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from slim_model.export.check_onnx import check_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.pipeline.compile import compile_model
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from small_nets import error, trained


class Ghost(nn.Module):
    """Features that are joined, cut to as many as are wanted, and added to in place (GhostNet)."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.first, self.more = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.side, self.head = nn.Conv2d(3, wanted, 1), nn.Linear(wanted, 5)
        self.wanted = wanted

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = torch.cat([y, self.more(torch.relu(y))], 1)[:, : self.wanted]
        y[:, : self.wanted] += self.side(x)
        return self.head(torch.relu(y).mean((2, 3)))


def slices(model: nn.Module) -> int:
    graph = capture(model, (torch.randn(2, 3, 8, 8),))
    return sum(node.target is torch.ops.aten.slice.Tensor for node in graph.nodes)


def test_only_whole_ones_go() -> None:
    assert slices(trained(Ghost(16))) == 0
    assert slices(trained(Ghost(12))) > 0


@pytest.mark.parametrize("wanted", [16, 12])
def test_the_file_computes_the_same_and_scatters_nothing(wanted: int, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    compiled = compile_model(trained(Ghost(wanted)), (x[:2],), Recipe.of(0.5, "l1", multiple_of=1))
    assert compiled.slim_cost.params < compiled.dense_cost.params
    to_onnx(compiled.small, tmp_path / "small.onnx", opset=None, metadata={})
    check_onnx(tmp_path / "small.onnx", compiled.small, [(x,)])
    kinds = {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert ("ScatterND" in kinds) == (wanted == 12)


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:]


def test_what_is_returned_stays() -> None:
    x = torch.randn(2, 3)
    graph = capture(Returned(), (x,))
    assert error(x, graph.run((x,))[0]) == 0
