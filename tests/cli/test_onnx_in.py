"""ONNX in, ONNX out: the same channels as from PyTorch, and what the file says is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from command_runs import QUICK, Command, widths
from from_onnx.graphs import file_of, node, two_convolutions, weights
from slim_model.export.to_onnx import to_onnx
from slim_model.proof.capture import capture
from small_nets import Residual, trained


def _slim(command: Command, source: Path, folder: Path, *more: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    out, report = folder / "out.onnx", folder / "r.json"
    ran = command(source, out, "--ratio", "0.5", *QUICK, "--report", report, *more)
    assert ran.code == 0, ran.err
    return onnx.load(out), json.loads(report.read_text())


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "in.onnx"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Residual, as slim-model itself writes it."""
    path = tmp_path_factory.mktemp("residual") / "in.onnx"
    graph = capture(trained(Residual()), (torch.randn(1, 3, 16, 16),))
    to_onnx(graph, path, opset=None, metadata={})
    return path


def test_the_same_layers_get_the_same_widths_as_from_pytorch(command: Command, residual: Path, tmp_path: Path) -> None:
    _, report = _slim(command, residual, tmp_path)
    assert sorted(widths(report).values()) == [8, 8, 12, 12]
    assert report["source"]["kind"] == "onnx"
    assert report["source"]["read_max_rel_error"] < 1e-5
    assert report["proof"]["onnx_max_rel_error"] < 1e-5
    assert not report["pinned"] or {p["name"] for p in report["pinned"]} == {"fc"}


def test_names_and_free_axes_of_the_file_are_kept(command: Command, tmp_path: Path) -> None:
    source = _file(tmp_path, two_convolutions(input_name="input.1", output_name="495"))
    model, report = _slim(command, source, tmp_path)
    assert [value.name for value in model.graph.input] == ["input.1"]
    assert [value.name for value in model.graph.output] == ["495"]
    assert [bool(d.dim_param) for d in model.graph.input[0].type.tensor_type.shape.dim] == [True, False, False, False]
    assert {"/first", "/second"} <= {n.name for n in model.graph.node}
    (group,) = report["groups"]
    assert (group["name"], group["before"], group["after"]) == ("a", 8, 4)
    assert group["where"] == "in.onnx:1 in /first: h = Conv(input.1, a.weight)"


def test_a_batch_that_the_file_fixes_stays_fixed_until_it_is_freed(command: Command, tmp_path: Path) -> None:
    source = _file(tmp_path, two_convolutions(batch=1))
    model, report = _slim(command, source, tmp_path)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert any("the file has it so; --dynamic 0 frees it" in note for note in report["warnings"])
    model, _ = _slim(command, source, tmp_path, "--dynamic", "0")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_axes_that_the_file_leaves_open_stay_open(command: Command, tmp_path: Path) -> None:
    nodes = [node("Conv", "x a", "h", pads=[1, 1, 1, 1]), node("Relu", "h", "r"), node("GlobalAveragePool", "r", "p"),
             node("Flatten", "p", "f"), node("Gemm", "f b", "y", transB=1)]  # fmt: skip
    stored = {"a": weights(8, 3, 3, 3), "b": weights(4, 8)}
    source = _file(tmp_path, file_of(nodes, {"x": ["n", 3, "h", "w"]}, ["y"], stored))
    model, _ = _slim(command, source, tmp_path)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 3, "height", "width"
    ]  # fmt: skip


def test_a_file_that_computes_something_else_than_what_was_read_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slim_model.from_onnx import model
    from slim_model.from_onnx.row import Row

    wrong = model.ROWS | {"Relu": Row(lambda call: call.tensor(0).abs())}
    monkeypatch.setattr(model, "ROWS", wrong)
    ran = command(_file(tmp_path, two_convolutions()), tmp_path / "out.onnx", "--ratio", "0.5", *QUICK)
    assert ran.code == 4
    assert "what was read of the file differs from onnxruntime on it" in ran.message
    assert not (tmp_path / "out.onnx").exists()


def test_explain_names_the_nodes_of_the_file(command: Command, tmp_path: Path) -> None:
    ran = command("explain", _file(tmp_path, two_convolutions()))
    assert ran.code == 0, ran.err
    assert "/first" in ran.out


def test_weights_alone_say_nothing_without_the_file(command: Command, tmp_path: Path) -> None:
    source = _file(tmp_path, two_convolutions())
    ran = command(source, tmp_path / "o.onnx", "--ratio", "0.5", "--save", tmp_path / "s.safetensors", *QUICK)
    assert ran.code == 2
    assert "--save s.safetensors" in ran.message
    assert ".pt2" in ran.message
    ran = command(source, tmp_path / "o.onnx", "--ratio", "0.5", "--save", tmp_path / "s.pt2", *QUICK)
    assert ran.code == 0, ran.err
    program = torch.export.load(tmp_path / "s.pt2")
    assert program.module()(torch.randn(2, 3, 6, 6))["y"].shape == (2, 4, 6, 6)
