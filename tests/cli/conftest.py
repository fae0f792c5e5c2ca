"""The command to run in this process, weights to give it, and a place for what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from command_runs import ARCH, OLD, QUICK, Command, Ran
from slim_model import cli
from slim_model.commands import slim as slim_stages
from small_nets import SHAPE, Residual, trained


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: Any) -> Ran:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of Residual."""
    path = tmp_path_factory.mktemp("in") / "residual.pt"
    torch.save(trained(Residual()).state_dict(), path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where OUT.onnx goes, in a folder of its own; there is a file from earlier."""
    path = tmp_path / "out" / "OUT.onnx"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@pytest.fixture
def slimmed(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs the command on Residual, all but the export, and returns its JSON report."""
    monkeypatch.setattr(slim_stages, "to_onnx", lambda *_, **__: None)
    monkeypatch.setattr(slim_stages, "check_onnx", lambda *_, **__: 0.0)

    def run(*options: Any) -> dict[str, Any]:
        report = out.parent / "report.json"
        ran = command(weights, out, "--arch", ARCH, "--input", SHAPE, "--report", report, *QUICK, *options)
        assert ran.code == 0, ran.err
        return dict(json.loads(report.read_text()))

    return run
