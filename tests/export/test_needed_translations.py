"""The exporter reads the translations that a program needs, and writes the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from onnxscript.function_libs.torch_lib import registration
from torch import Tensor, nn

from slim_model.export import needed_translations, to_onnx
from slim_model.export.lower import Lowered
from slim_model.graph.trace import trace


class Promoted(nn.Module):
    """The exporter writes the numbers as tensors, and other overloads."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x, 2) + x.gt(0) * 3


class Written(nn.Module):
    """The exporter takes this apart whatever ONNX has: it writes through a view."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, :4].mul_(0.5)
        return x


NETS = {
    "lowered": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval(),
    "promoted": nn.Sequential(nn.Conv2d(3, 8, 3), Promoted(), nn.Hardswish(), nn.Flatten(), nn.Linear(512, 3)).eval(),
    "without a translation": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softshrink()).eval(),
    "written to": nn.Sequential(nn.Conv2d(3, 8, 3), Written()).eval(),
}


def _held(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What the registry holds at each export from now on."""
    held: list[set[str]] = []
    export = torch.onnx.export

    def exporting(*arguments: Any, **options: Any) -> Any:
        held.append(set(registration.default_registry))
        return export(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", exporting)
    return held


def test_what_the_exporter_lacks_is_looked_for_among_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(NETS["lowered"], (torch.randn(2, 3, 10, 10),))
    held = _held(monkeypatch)
    monkeypatch.setattr(Lowered, "called", lambda _: {"aten::add.Tensor"})
    to_onnx.to_onnx(graph, tmp_path / "net.onnx", opset=None, metadata={})
    assert [x > {"aten::conv2d"} for x in held] == [False, True]


@pytest.mark.parametrize("name", NETS)
def test_the_file_is_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(NETS[name], (torch.randn(2, 3, 10, 10),))
    held, every = _held(monkeypatch), registration.default_registry
    to_onnx.to_onnx(graph, tmp_path / "few.onnx", opset=None, metadata={})
    assert registration.default_registry is every
    called = {x for x in held[0] if x.startswith("aten::")}
    assert (len(called) < 30) == (name in ("lowered", "promoted"))  # of more than 400
    assert len(held) == 1  # the short way was not refused

    monkeypatch.setattr(needed_translations, "_registration", lambda: None)  # as with another onnxscript
    to_onnx.to_onnx(graph, tmp_path / "all.onnx", opset=None, metadata={})
    assert held[1] == set(every)
    assert (tmp_path / "few.onnx").read_bytes() == (tmp_path / "all.onnx").read_bytes()


def test_the_registry_is_whole_again_after_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(NETS["lowered"], (torch.randn(2, 3, 10, 10),))
    every = registration.default_registry

    def refuse(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ZeroDivisionError):
        to_onnx.to_onnx(graph, tmp_path / "net.onnx", opset=None, metadata={})
    assert registration.default_registry is every
