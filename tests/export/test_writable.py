"""What has no form in ONNX is said before the work, and never of what PyTorch can write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slim_model.errors import ExportError
from slim_model.export.to_onnx import to_onnx
from slim_model.export.writable import check_writable, unwritable_node
from slim_model.proof.capture import capture
from small_nets import NotInOnnx, Residual, images, trained


class Unusual(nn.Module):
    """Operators that few models have, and that the exporter knows or takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft(x.mean((1, 2))).abs()[:, :8].renorm(2, 0, 5.0)
        return self.head(torch.roll(x, 1, 1) + torch.special.erf(x))


def test_what_onnx_has_no_form_for_is_refused_with_its_line() -> None:
    graph = capture(trained(NotInOnnx()), (images(),))
    with pytest.raises(ExportError, match=r"cannot write aten.linalg_matrix_exp.default as ONNX \(at small_nets.py:"):
        check_writable(graph)


@pytest.mark.parametrize("net", [Residual, Unusual])
def test_what_can_be_written_is_not(net: type[nn.Module], tmp_path: Path) -> None:
    graph = capture(trained(net()), (images(),))
    assert unwritable_node(graph) is None
    to_onnx(graph, tmp_path / "out.onnx", opset=None, metadata={})
