"""What the other options do with an ONNX file: a teacher without labels, limits, recovery, int8, times, a .pt2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from command_runs import QUICK, Command
from from_onnx.graphs import file_of, node, weights

STORED = {
    "a": weights(16, 3, 3, 3) * 0.2,
    "b": weights(16, 16, 3, 3, seed=1) * 0.1,
    "c": weights(10, 16, seed=2),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """in.onnx, a classifier whose batch is written as -1, and pictures without labels."""
    folder = tmp_path_factory.mktemp("onnx_in")
    nodes = [node("Conv", "x a", "h", "/first", pads=[1, 1, 1, 1]), node("Relu", "h", "r"),
             node("Conv", "r b", "k", "/second", pads=[1, 1, 1, 1]), node("Relu", "k", "q"),
             node("GlobalAveragePool", "q", "p"), node("Flatten", "p", "f"),
             node("Gemm", "f c", "y", "/head", transB=1)]  # fmt: skip
    (folder / "in.onnx").write_bytes(file_of(nodes, {"x": [-1, 3, 8, 8]}, ["y"], STORED))
    np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((160, 3, 8, 8), np.float32))
    return folder


def _ran(command: Command, place: Path, out: Path, *options: Any) -> dict[str, Any]:
    """The report of a run on in.onnx, whose file still takes any batch."""
    report = out.with_name("r.json")
    ran = command(place / "in.onnx", out, "--multiple-of", "1", "--report", report, *options)
    assert ran.code == 0, ran.err
    small = onnxruntime.InferenceSession(out)
    assert small.run(None, {"x": np.zeros((3, 3, 8, 8), np.float32)})[0].shape == (3, 10)
    return dict(json.loads(report.read_text()))


def test_the_file_teaches_its_small_one_without_labels(command: Command, place: Path, tmp_path: Path) -> None:
    data = ("--data", f"npz:{place / 'data.npz'}", "--batch", "32")
    report = _ran(command, place, tmp_path / "out.onnx", *data, "--finetune", "2", "--ratio", "0.25", "--no-bench")
    assert {"affine", "full", "fine-tuning"} <= {step["name"] for step in report["steps"]}
    assert report["source"]["kind"] == "onnx"


def test_a_limit_on_multiply_adds_holds(command: Command, place: Path, tmp_path: Path) -> None:
    report = _ran(command, place, tmp_path / "out.onnx", "--target", "macs=98K", "--no-bench")
    assert report["slim"]["macs"] <= 98_000 < report["dense"]["macs"]


def test_a_limit_on_latency_is_kept_or_refused(command: Command, place: Path, tmp_path: Path) -> None:
    """The file itself is timed: no limit that it keeps as it is asks for anything to go."""
    ran = command(place / "in.onnx", tmp_path / "out.onnx", "--target", "latency=900ms", "--no-bench")
    assert ran.code == 3
    assert "latency is" in ran.message
    assert "no more than the 900.00 ms allowed" in ran.message


def test_int8_is_written_of_the_small_one(command: Command, place: Path, tmp_path: Path) -> None:
    data = ("--data", f"npz:{place / 'data.npz'}", "--effort", "quick", "--int8", "--int8-anyway")
    _ran(command, place, tmp_path / "out.onnx", *data, "--int8-form", "u8s8", "--min-agreement", "0.5", "--no-bench")
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(tmp_path / "out.onnx").graph.node)


def test_a_file_with_an_open_size_of_minus_one_is_timed(command: Command, place: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    ran = command("bench", place / "in.onnx", place / "in.onnx", "--rounds", "2", "--batch", "2", "--json", rows)
    assert ran.code == 0, ran.err
    assert {json.loads(line)["batch"] for line in rows.read_text().splitlines()} == {2}


def test_explain_writes_all_for_machines(command: Command, place: Path, tmp_path: Path) -> None:
    ran = command("explain", place / "in.onnx", "--json", tmp_path / "e.json", "--layer", "a")
    assert ran.code == 0, ran.err
    assert "in.onnx:1 in /first" in (tmp_path / "e.json").read_text()


def test_a_saved_program_that_keeps_a_node_says_what_it_needs(command: Command, tmp_path: Path) -> None:
    """Its operator is slim-model's own: without the package PyTorch does not know it."""
    source, saved = tmp_path / "in.onnx", tmp_path / "small.pt2"
    nodes = [node("Conv", "x a", "h", "/first", pads=[1, 1, 1, 1]), node("Relu", "h", "r"),
             node("Conv", "r b", "k", "/second", pads=[1, 1, 1, 1]),
             node("LpPool", "k", "y", "/pool", kernel_shape=[2, 2], strides=[2, 2], p=3)]  # fmt: skip
    source.write_bytes(file_of(nodes, {"x": ["n", 3, 8, 8]}, ["y"], STORED))
    ran = command(source, tmp_path / "out.onnx", "--ratio", "0.5", *QUICK, "--save", saved)
    assert ran.code == 0, ran.err
    assert "small.pt2 needs slim-model where it is loaded: import slim_model.from_onnx.kept first" in " ".join(
        ran.out.split()
    )
    load = f"import torch; torch.export.load({str(saved)!r}).module()(torch.zeros(2, 3, 8, 8))['y'].mean()"
    for ahead, works in (("import slim_model.from_onnx.kept;", True), ("", False)):
        found = subprocess.run([sys.executable, "-c", ahead + load], capture_output=True, text=True, check=False)
        assert (found.returncode == 0) == works, found.stderr[-300:]
