"""Training by the command: what it writes and leaves, gates, a run that was killed, several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.data import TensorDataset

import slim_model
import small_nets
from command_runs import TIMEOUT, process
from slim_model import cli
from slim_model.data.datasets import rows_of
from small_nets import Residual, images, trained


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with weights, and data whose labels the dense model gets right."""
    model, x = trained(Residual()), images(240)
    with torch.no_grad():
        labels = model(x).argmax(1)
    torch.save(model.state_dict(), tmp_path / "in.pt")
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=labels.numpy())
    return tmp_path


def arguments(place: Path, *more: Any) -> list[str]:
    given = ["in.pt", "out.onnx", "--arch", f"{small_nets.__file__}:Residual", "--input", small_nets.SHAPE, "--data"]
    options = ["npz:data.npz", "--multiple-of", "1", "--batch", "16", "--precision", "fp32", "--report", "r.json"]
    options += ["--recover", "none", "--criterion", "l1"]  # training alone is what is looked at
    os.chdir(place)
    return [*given, *options, *map(str, more)]


def report(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "r.json").read_text()))


def written(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} - {"in.pt", "data.npz"}


def values(place: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(place / "out.onnx")
    return np.asarray(session.run(None, {"x": images(8, seed=5).numpy()})[0])


@pytest.fixture(autouse=True)
def stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # and back afterwards


def test_the_trained_values_are_in_the_file(place: Path) -> None:
    assert cli.run(arguments(place, "--no-bench", "--finetune", 2, "--save", "s.safetensors")) == 0
    assert written(place) == {"out.onnx", "r.json", "s.safetensors"}
    found = report(place)
    names = [step["name"] for step in found["steps"]]
    assert (names[0], names[-1]) == ("dense", "fine-tuning")
    assert found["steps"][-1]["did"]["chosen_epoch"] > 0
    assert found["proof"]["onnx_max_rel_error"] <= 1e-4
    restored = slim_model.restore(trained(Residual()), place / "s.safetensors")
    with torch.no_grad():
        expected = restored(images(8, seed=5))
    assert small_nets.error(expected, torch.from_numpy(values(place))) <= 1e-4


def test_gates_that_are_met(place: Path) -> None:
    met = ("--ratio", 0.1, "--max-drop", 0.99, "--min-speedup", 0.01)
    assert cli.run(arguments(place, *met)) == 0
    assert written(place) == {"out.onnx", "r.json"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--no-bench", "--max-drop", "-0.5"), "accuracy fell from 100.00% to"),
        (("--min-speedup", "1000"), "x as fast (95 %:"),
    ],
)
def test_gates_that_are_not_met(
    place: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    """Code 3, the report written, no model."""
    assert cli.run(arguments(place, *options, "--save", "s.pt")) == 3
    said = capsys.readouterr().err
    assert says in said
    assert "It is not handed out." in said
    assert written(place) == {"r.json"}
    assert report(place)["slim"]["macs"] < report(place)["dense"]["macs"]


def test_gates_on_what_will_not_be_known(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments(place, "--no-bench", "--min-speedup", 1.1)) == 2
    assert "--min-speedup needs the latency; leave out --no-bench" in capsys.readouterr().err
    np.savez(place / "data.npz", x=images(40).numpy())
    assert cli.run(arguments(place, "--no-bench", "--max-drop", 0.1)) == 2
    assert "max_drop: no accuracy can be read" in capsys.readouterr().err
    without = [a for a in arguments(place, "--no-bench", "--max-drop", 0.1) if a not in ("--data", "npz:data.npz")]
    assert cli.run(without) == 2
    assert "max_drop needs data with labels" in capsys.readouterr().err
    assert written(place) == set()


def test_a_gate_in_python() -> None:
    model, x = trained(Residual()), images(60)
    with torch.no_grad():
        data = (x, model(x).argmax(1))
    with pytest.raises(slim_model.GateError, match="accuracy fell from 100"):
        slim_model.slim(model, x[:2], ratio=0.7, data=data, max_drop=-0.5)


def test_a_killed_run_goes_on(place: Path) -> None:
    """The same command again ends with the values of one that was not stopped, and leaves no checkpoint."""
    options = ("--no-bench", "--finetune", 3, "--lr", 0.005)
    assert cli.run(arguments(place, *options)) == 0
    whole, epochs = values(place), report(place)["steps"][-1]["did"]["epochs"]
    for name in written(place):
        (place / name).unlink()
    with process(*arguments(place, *options)) as running:
        assert running.stderr is not None
        assert any("epoch 1 of 3, loss" in line for line in iter(running.stderr.readline, ""))
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=TIMEOUT)
    assert "out.onnx.finetune" in written(place)
    assert "out.onnx" not in written(place)
    assert cli.run(arguments(place, *options, "--seed", 1)) == 2  # another run
    assert cli.run(arguments(place, *options)) == 0
    assert np.array_equal(values(place), whole)
    assert [e["loss"] for e in report(place)["steps"][-1]["did"]["epochs"]] == [e["loss"] for e in epochs]
    assert {name for name in written(place) if not name.endswith(".part")} == {"out.onnx", "r.json"}


# -- several processes ----------------------------------------------------------------------------------------------


def group() -> dict[str, str]:
    """How ``torchrun`` tells two processes that they are one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def test_two_processes_do_what_one_does(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same plan from evidence gathered by both; training by averaged gradients ends about as well."""
    options = ("--no-bench", "--criterion", "reconstruction", "--finetune", 3, "--lr", 0.005)
    assert cli.run(arguments(place, *options)) == 0
    alone = report(place)
    for name in written(place):
        (place / name).unlink()
    for name, value in group().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    with process(*arguments(place, *options)) as second:
        monkeypatch.setenv("RANK", "0")
        capsys.readouterr()
        code, said = cli.run(arguments(place, *options)), capsys.readouterr()
        out, err = second.communicate(timeout=TIMEOUT)
    assert (code, second.returncode) == (0, 0), said.err + err
    assert (said.out + out).count("wrote out.onnx") == 1
    assert (said.err + err).count("epoch 3 of 3, loss") == 1
    shared = report(place)
    assert [g["kept"] for g in shared["groups"]] == [g["kept"] for g in alone["groups"]]
    mine, theirs = (r["steps"][-1]["did"] for r in (shared, alone))
    assert mine["processes"] == 2
    assert [e["loss"] for e in mine["epochs"][1:]] == pytest.approx([e["loss"] for e in theirs["epochs"][1:]], rel=0.2)
    assert shared["proof"]["onnx_max_rel_error"] <= 1e-4
    assert written(place) == {"out.onnx", "r.json"}


def test_what_ends_one_process_ends_all_with_one_message(place: Path) -> None:
    """A sample of the second batch, which is the second process's, is no number."""
    x = images(240)
    rows = rows_of(TensorDataset(x), "train")
    sample = int(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[20]])
    x[sample] = torch.nan
    np.savez(place / "data.npz", x=x.numpy())
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "slim_model"]
    env = os.environ | {"PYTHONPATH": str(Path(slim_model.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    given = [*line, *arguments(place, "--no-bench", "--criterion", "variance")]
    ran = subprocess.run(given, capture_output=True, text=True, env=env, timeout=TIMEOUT, check=False)
    assert ran.returncode != 0
    assert len(re.findall("^error: ", ran.stderr, re.MULTILINE)) == 1, ran.stderr
    assert f"sample {sample} (from 0) holds NaN or infinity" in " ".join(ran.stderr.split())
    assert written(place) == set()
