"""Every bad input has one clear message, and nothing is written."""

from __future__ import annotations

import errno
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import small_nets
from command_runs import ARCH, QUICK, RESIDUAL, TIMEOUT, Command, forked, on_a_full_disk, untouched
from slim_model.commands import slim as slim_stages
from small_nets import SHAPE, OnlyOutputs, Raises, Residual, trained


@dataclass(frozen=True, slots=True)
class Bad:
    """``arguments(folder, weights)`` come before OUT.onnx's own; ``says`` are words of the message."""

    source: Callable[[Path, Path], Path]
    options: tuple[Any, ...]
    says: tuple[str, ...]
    code: int = 2


def given(_: Path, weights: Path) -> Path:
    return weights


def missing(folder: Path, _: Path) -> Path:
    return folder / "no_such.pt"


def truncated(folder: Path, weights: Path) -> Path:
    data = weights.read_bytes()
    (folder / "cut.pt").write_bytes(data[: len(data) // 2])
    return folder / "cut.pt"


def no_model(folder: Path, _: Path) -> Path:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("photo.txt", "a photo")
    return folder / "photos.zip"


def text(folder: Path, _: Path) -> Path:
    (folder / "notes.pt").write_text("not a model")
    return folder / "notes.pt"


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def malicious(folder: Path, _: Path) -> Path:
    torch.save({"model": Malicious(folder / "out" / "RAN")}, folder / "evil.pt")
    return folder / "evil.pt"


def malicious_pickle(folder: Path, _: Path) -> Path:
    (folder / "evil.pkl").write_bytes(pickle.dumps(Malicious(folder / "out" / "RAN")))
    return folder / "evil.pkl"


def saved(model: nn.Module) -> Callable[[Path, Path], Path]:
    def save(folder: Path, _: Path) -> Path:
        torch.save(model.state_dict(), folder / "in.pt")
        return folder / "in.pt"

    return save


def broken(number: float) -> Callable[[Path, Path], Path]:
    model = trained(Residual())
    with torch.no_grad():
        model.get_parameter("block1.conv2.weight")[3, 2, 1, 0] = number
    return saved(model)


BAD: dict[str, Bad] = {
    "missing file": Bad(missing, RESIDUAL, ("no_such.pt", "no such file")),
    "folder": Bad(lambda folder, _: folder, RESIDUAL, ("is a folder", "Give the model file")),
    "truncated": Bad(truncated, RESIDUAL, ("cut.pt", "damaged")),
    "zip that is no model": Bad(no_model, RESIDUAL, ("photos.zip", "no PyTorch model", "photo.txt")),
    "no model at all": Bad(text, RESIDUAL, ("notes.pt", "no PyTorch model")),
    "malicious": Bad(malicious, ("--input", SHAPE), ("evil.pt", "refused", "--trust-pickle", "--arch")),
    "malicious pickle": Bad(malicious_pickle, ("--input", SHAPE), ("evil.pkl", "refused")),
    "no arch": Bad(given, ("--input", SHAPE), ("residual.pt", "state dict", "--arch", "torchvision:")),
    "wrong arch": Bad(
        given,
        ("--arch", f"{small_nets.__file__}:HardCoded", "--input", SHAPE),
        ("conv1.weight", "conv2.bias", "missing", "stem.weight", "not in the model"),
    ),
    "arch that is not there": Bad(given, ("--arch", f"{small_nets.__file__}:Nothing"), ("--arch", "Nothing")),
    "arch file that is not there": Bad(given, ("--arch", "no_such.py:Net"), ("no Python file", "no_such.py")),
    "wrong input": Bad(given, ("--arch", ARCH, "--input", "1x1x16x16"), ("1x1x16x16", "small_nets.py", "--input")),
    "input that is no shape": Bad(given, ("--arch", ARCH, "--input", "16by16"), ("16by16", "1x3x224x224")),
    "ratio 0": Bad(given, (*RESIDUAL, "--ratio", 0), ("ratio", "0", "between 0 and 1")),
    "ratio 1": Bad(given, (*RESIDUAL, "--ratio", 1), ("ratio", "between 0 and 1")),
    "ratio in percent": Bad(given, (*RESIDUAL, "--ratio", 50), ("ratio", "50", "fraction")),
    "ratio negative": Bad(given, (*RESIDUAL, "--ratio", -0.5), ("ratio", "-0.5", "fraction")),
    "ratio nan": Bad(given, (*RESIDUAL, "--ratio", "nan"), ("ratio", "nan")),
    "ratio that is no number": Bad(given, (*RESIDUAL, "--ratio", "half"), ("--ratio", "number")),
    "unknown criterion": Bad(given, (*RESIDUAL, "--criterion", "l7"), ("l7", "l1, l2")),
    "unknown scope": Bad(given, (*RESIDUAL, "--scope", "galaxy"), ("galaxy", "local, global")),
    "multiple of 0": Bad(given, (*RESIDUAL, "--multiple-of", 0), ("0", "auto")),
    "multiple of a word": Bad(given, (*RESIDUAL, "--multiple-of", "many"), ("--multiple-of many", "auto")),
    "threads 0": Bad(given, (*RESIDUAL, "--threads", 0), ("--threads",)),
    "unknown device": Bad(given, (*RESIDUAL, "--device", "tpu"), ("device 'tpu'", "cuda")),
    "unknown option": Bad(given, (*RESIDUAL, "--ration", 0.5), ("--ration",)),
    "unknown format": Bad(given, (*RESIDUAL, "--save", "small.h5"), ("small.h5", ".pt2, .safetensors, .pt")),
    "report into a folder that is not there": Bad(
        given, (*RESIDUAL, "--report", "no/such/R.json"), ("no/such/R.json", "does not exist")
    ),
    "save over a folder": Bad(given, (*RESIDUAL, "--save", Path(__file__).parent), ("cli",)),
    "NaN": Bad(broken(math.nan), RESIDUAL, ("block1.conv2.weight", "NaN or infinity", "1 of 2304")),
    "infinity": Bad(broken(-math.inf), RESIDUAL, ("block1.conv2.weight", "NaN or infinity")),
    "forward that raises": Bad(
        saved(Raises()),
        ("--arch", f"{small_nets.__file__}:Raises", "--input", SHAPE),
        ("this forward is not finished", "small_nets.py", "raise RuntimeError"),
    ),
    "nothing to prune": Bad(
        saved(OnlyOutputs()),
        ("--arch", f"{small_nets.__file__}:OnlyOutputs", "--input", SHAPE),
        ("nothing can be removed", "conv", "output of the model"),
        3,
    ),
    "everything kept": Bad(given, (*RESIDUAL, "--keep", "*"), ("nothing can be removed", "--keep"), 3),
    "keep that matches nothing": Bad(given, (*RESIDUAL, "--keep", "layer9.*"), ("--keep", "layer9.*")),
    "too narrow": Bad(given, (*RESIDUAL, "--ratio", 0.01, "--multiple-of", 1), ("removes no channel", "narrow"), 3),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(command: Command, weights: Path, out: Path, tmp_path: Path, name: str) -> None:
    bad = BAD[name]
    ran = command(bad.source(tmp_path, weights), out, "--no-bench", *bad.options)
    assert ran.code == bad.code, ran.err
    for word in bad.says:
        assert word in ran.message
    assert untouched(out)


def test_a_file_that_may_not_be_read(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not hold for root, so the refusal is made here."""
    real = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if path == weights:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    ran = command(weights, out, *RESIDUAL)
    assert ran.code == 2
    assert "Permission denied" in ran.message
    assert untouched(out)


@pytest.mark.parametrize(
    ("place", "says"),
    [("no/such/OUT.onnx", "the folder"), ("out", "is a folder"), ("/proc/OUT.onnx", "cannot write")],
)
def test_a_place_that_cannot_be_written(
    command: Command, weights: Path, tmp_path: Path, out: Path, place: str, says: str
) -> None:
    ran = command(weights, tmp_path / place, *RESIDUAL)
    assert ran.code == 2
    assert says in ran.message
    assert "reading" not in ran.err
    assert untouched(out)


@pytest.mark.parametrize("arguments", [(), ("in.pt",), ("in.pt", "OUT.onnx", "more.onnx")])
def test_wrong_number_of_arguments(command: Command, arguments: tuple[str, ...]) -> None:
    ran = command(*arguments)
    assert ran.code == 2
    assert ran.message
    assert "--help" in ran.err


def test_a_full_disk(command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, path: str, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 2
    assert "No space left" in ran.message
    assert untouched(out)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_disk_that_is_full_when_the_small_model_is_saved(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(slim_stages, "save", on_a_full_disk(slim_stages.save))
    ran = command(weights, out, *RESIDUAL, *QUICK, "--save", out.parent / f"S{suffix}")
    assert ran.code == 2
    assert f"S{suffix}" in ran.message
    assert untouched(out)


def test_a_disk_that_is_full_when_an_archive_is_saved(weights: Path, out: Path) -> None:
    """In a process of its own: PyTorch's archive writer may end the process when it cannot write."""

    def fill_the_disk() -> None:
        slim_stages.save = on_a_full_disk(slim_stages.save)  # type: ignore[assignment]

    arguments = (weights, out, *RESIDUAL, *QUICK, "--save", out.parent / "S.pt2")
    with forked(*arguments, before=fill_the_disk) as running:
        _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 2, err
    assert "S.pt2" in err
    assert "Traceback" not in err
    assert untouched(out)


def test_an_output_may_not_replace_the_input_or_another_output(
    command: Command, weights: Path, out: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in.pt"
    source.write_bytes(weights.read_bytes())
    link = tmp_path / "link.pt"
    link.symlink_to(source)
    for places in (
        (source, source),
        (source, link),
        (source, out, "--save", source),
        (source, out, "--report", out),
        (source, out, "--save", out.parent / "S.pt", "--report", out.parent / "S.pt"),
    ):
        ran = command(*places, *RESIDUAL, *QUICK)
        assert ran.code == 2, places
        assert "same file" in ran.message
        assert source.read_bytes() == weights.read_bytes()
        assert untouched(out)


@pytest.mark.parametrize(("opset", "says"), [(17, "Ask for 18 to "), (99, "or an older one")])
def test_an_opset_that_cannot_be_written(command: Command, weights: Path, out: Path, opset: int, says: str) -> None:
    """The exporter takes any number and writes another. What is said to be there can be had."""
    ran = command(weights, out, *RESIDUAL, *QUICK, "--opset", opset)
    assert ran.code == 2
    assert f"--opset {opset}" in ran.message
    assert says in ran.message
    assert untouched(out)
    for other in re.findall(r"\b\d\d\b", ran.message.partition("Ask for")[2]):
        assert command(weights, out, *RESIDUAL, *QUICK, "--opset", other).code == 0, other
        assert onnx.load(out).opset_import[0].version == int(other)
