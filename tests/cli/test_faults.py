"""Proofs that fail, faults of ours, runs that are interrupted: the older file stays, nothing half written."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import small_nets
from command_runs import OLD, QUICK, RESIDUAL, TIMEOUT, Command, forked, untouched, wait_for, widths
from slim_model.commands import slim as slim_stages
from slim_model.cutting import shrink_graph
from slim_model.export import check_onnx
from slim_model.pipeline import compile as pipeline
from small_nets import SHAPE, NotInOnnx, trained


@pytest.mark.parametrize(
    ("parameter", "axis"),
    [("block1.conv2.weight", 0), ("block2.conv1.weight", 1), ("bn.running_mean", 0), ("fc.weight", 1)],
)
def test_a_wrong_slice_is_caught(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, parameter: str, axis: int
) -> None:
    """The small model gets the right number of channels, but in the wrong order."""
    right = shrink_graph._sliced

    def wrong(coupling: Any, cut: Any, owner: str) -> torch.Tensor:
        tensor = right(coupling, cut, owner)
        return tensor.roll(1, axis) if owner == parameter else tensor

    monkeypatch.setattr(shrink_graph, "_sliced", wrong)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 4
    assert "could not be proven" in ran.message
    assert untouched(out)


def test_a_slice_that_is_wrong_only_where_it_is_cut_is_left_whole(
    slimmed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be shown to be right is pinned, and the report says so."""
    right, name = shrink_graph._sliced, "block1.conv1.weight"

    def wrong(coupling: Any, cut: Any, owner: str) -> torch.Tensor:
        tensor = right(coupling, cut, owner)
        cut_here = owner == name and tensor.shape[0] < coupling.graph.tensors[owner].shape[0]
        return tensor.roll(1, 0) if cut_here else tensor

    monkeypatch.setattr(shrink_graph, "_sliced", wrong)
    report = slimmed()
    assert "block1.conv1" not in widths(report)
    assert any("could not be shown to be exact" in pin["why"] for pin in report["pinned"])
    assert widths(report)["block2.conv1"] == 12


@pytest.mark.parametrize("saves", [False, True])
def test_onnxruntime_that_differs_is_caught(
    command: Command, weights: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    """The small PyTorch model is proven, and kept where that was asked for."""
    right, saved = check_onnx.run_onnx, tmp_path / "small.safetensors"
    monkeypatch.setattr(check_onnx, "run_onnx", lambda *a: [x + 1e-3 * np.abs(x).max() for x in right(*a)])
    ran = command(weights, out, *RESIDUAL, *QUICK, *(["--save", saved] if saves else []))
    assert ran.code == 4
    assert "onnxruntime differs" in ran.message
    assert (f"is in {saved}" if saves else "--save small.safetensors") in ran.message
    assert saved.exists() == saves
    assert untouched(out)


@pytest.mark.parametrize("saves", [False, True])
def test_an_invalid_onnx_file_is_caught(
    command: Command, weights: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    saved = tmp_path / "small.safetensors"

    def save(self: Any, path: str, **_: Any) -> None:
        wrong = self.model_proto
        wrong.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(wrong, path)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)
    ran = command(weights, out, *RESIDUAL, *QUICK, *(["--save", saved] if saves else []))
    assert ran.code == 5
    assert "NoSuchOperator" in ran.message
    assert (f"is in {saved}" if saves else "--save small.safetensors") in ran.message
    assert saved.exists() == saves
    assert untouched(out)


@pytest.mark.parametrize("saves", [False, True])
def test_what_onnx_has_no_form_for_is_said_before_the_work(
    command: Command, tmp_path: Path, out: Path, saves: bool
) -> None:
    """And goes on where the small PyTorch model is wanted all the same."""
    source, small = tmp_path / "in.pt", tmp_path / "small.safetensors"
    torch.save(trained(NotInOnnx()).state_dict(), source)
    options = ("--arch", f"{small_nets.__file__}:NotInOnnx", "--input", SHAPE, *QUICK)
    ran = command(source, out, *options, *(["--save", small] if saves else []))
    assert ran.code == 5
    assert "linalg_matrix_exp" in ran.message
    assert ("removing channels" in ran.err) == saves
    assert small.exists() == saves
    assert (f"is in {small}" if saves else "--save small.safetensors") in ran.message
    assert untouched(out)


def test_a_fault_of_ours_is_called_that(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a stage divided by zero")

    monkeypatch.setattr(pipeline, "couple_attention", fail)
    ran = command(weights, out, *RESIDUAL)
    assert ran.code == 1
    assert "ZeroDivisionError: a stage divided by zero" in ran.message
    assert "fault of slim-model" in ran.err
    assert untouched(out)
    assert "Traceback" not in ran.err
    monkeypatch.setenv("SLIM_MODEL_DEBUG", "1")
    assert "Traceback" in command(weights, out, *RESIDUAL).err


@pytest.mark.parametrize("stage", ["measure", "make_report"])
def test_a_fault_after_the_checks_leaves_the_older_file_too(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a late stage divided by zero")

    monkeypatch.setattr(slim_stages, stage, fail)
    ran = command(weights, out, *RESIDUAL, *(QUICK if stage == "make_report" else ()))
    assert ran.code == 1
    assert "OUT.onnx is as it was" in ran.err
    assert untouched(out)


# -- interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["load_source", "compile_model", "to_onnx", "check_onnx"])
def test_ctrl_c_in_a_stage(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupted(*arguments: Any, **_: Any) -> None:
        if stage == "to_onnx":
            arguments[1].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(slim_stages, stage, interrupted)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 130
    assert "interrupted" in ran.err
    assert "Traceback" not in ran.err
    assert untouched(out)


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGINT, "writing"),
        (signal.SIGTERM, "writing"),
        (signal.SIGKILL, "writing"),
        (signal.SIGKILL, "measuring"),
    ],
)
def test_a_signal_leaves_no_partial_file(weights: Path, out: Path, stage: str, number: signal.Signals) -> None:
    with forked(weights, out, *RESIDUAL) as running:
        wait_for(running, stage)
        running.send_signal(number)
        _, err = running.communicate(timeout=TIMEOUT)
    if out.read_bytes() != OLD:
        assert stage == "measuring"
        onnx.checker.check_model(str(out), full_check=True)
    left = [path.name for path in out.parent.iterdir() if path != out]
    if number is signal.SIGKILL:
        assert all(re.fullmatch(r"\.OUT\.onnx\..*\.part", name) for name in left)
        return
    assert left == []
    assert "Traceback" not in err
    assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
