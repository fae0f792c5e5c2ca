"""Energy of an ONNX file by the model: the same as that of the graph it was written from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from slim_model.cost.counted import CostModel
from slim_model.cost.onnx_energy import estimate_energy
from slim_model.coupling.couple import couple
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.trace import trace
from slim_model.simplifying.simplify import simplify
from small_nets import trained

NETS = {
    "conv": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2)), (2, 3, 8, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 5, 4, 2), nn.ReLU(), nn.Conv2d(5, 2, 1)), (2, 3, 6, 6)),
    "linear": (nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)), (2, 7)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_file_takes_what_its_graph_does(name: str, tmp_path: Path) -> None:
    """Biases apart: ONNX has them as a third operand, which is not counted."""
    net, shape = NETS[name]
    for module in net:
        if hasattr(module, "bias"):
            module.bias = None
    graph = simplify(trace(trained(net), (torch.randn(shape),)))
    to_onnx(graph, tmp_path / "out.onnx", opset=None, metadata={})
    one = (1, *shape[1:])
    assert estimate_energy(tmp_path / "out.onnx", [one]) == pytest.approx(CostModel(couple(graph)).energy())
    assert estimate_energy(tmp_path / "out.onnx", [(4, *shape[1:])]) > CostModel(couple(graph)).energy()  # type: ignore[operator]


def test_sizes_that_follow_from_values_are_not_guessed(tmp_path: Path) -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x[x.sum(1) > 0])

    program = torch.onnx.export(Chosen(), (torch.randn(6, 4),), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "chosen.onnx")
    assert estimate_energy(tmp_path / "chosen.onnx", [(6, 4)]) is None
