"""The command: what it writes, prints and returns; every bad input one clear message; nothing half written."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import slim_model
import small_nets
from slim_model import cli
from slim_model.cli import main
from small_nets import SHAPE, HardCoded, OnlyOutputs, Raises, Residual, images, trained

ARCH = f"{small_nets.__file__}:Residual"
OLD = b"an older file"
QUICK = ("--no-bench", "--multiple-of", "1")


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        return lines[0]


Command = Callable[..., Ran]


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
    monkeypatch.setattr(run_module(), "to_onnx", lambda *_, **__: None)
    monkeypatch.setattr(run_module(), "check_onnx", lambda *_, **__: 0.0)

    def run(*options: Any) -> dict[str, Any]:
        report = out.parent / "report.json"
        ran = command(weights, out, "--arch", ARCH, "--input", SHAPE, "--report", report, *QUICK, *options)
        assert ran.code == 0, ran.err
        return dict(json.loads(report.read_text()))

    return run


def untouched(out: Path) -> bool:
    """The file from earlier is as it was, and alone."""
    return out.read_bytes() == OLD and [path.name for path in out.parent.iterdir()] == [out.name]


def widths(report: dict[str, Any]) -> dict[str, int]:
    return {group["name"]: group["after"] for group in report["groups"]}


# -- what it writes -------------------------------------------------------------------------------------------------


def test_one_run(command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file computes, carries its origin, and screen and report agree with it."""
    monkeypatch.chdir(out.parent)
    ran = command(
        *(weights, "OUT.onnx", "--arch", ARCH, "--input", SHAPE, "--ratio", 0.5, "--multiple-of", 1),
        *("--report", "R.json", "--save", "S.pt2", "--threads", 2),
    )
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in out.parent.iterdir()) == ["OUT.onnx", "R.json", "S.pt2"]
    report = json.loads(Path("R.json").read_text())

    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["slim_model_version"] == slim_model.__version__
    assert metadata["slim_model_ratio"] == "0.5"
    assert metadata["slim_model_criterion"] == "l1"
    assert metadata["slim_model_source_sha256"] == report["source"]["sha256"]
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert shapes["fc.weight"] == (5, 12)
    assert report["slim"]["bytes"] == out.stat().st_size

    session = onnxruntime.InferenceSession(out)
    small = torch.export.load("S.pt2").module()
    for batch in (1, 4, 7):
        (got,) = session.run(None, {"x": images(batch).numpy()})
        assert small_nets.error(small(images(batch)), torch.from_numpy(got)) <= 1e-4

    for row in report["latency"]:
        assert row["dense"]["threads"] == row["slim"]["threads"] == 2
        assert row["dense"]["p10_ms"] <= row["dense"]["median_ms"] <= row["dense"]["p90_ms"]
    assert [row["runtime"] for row in report["latency"]] == ["onnxruntime", "pytorch"]

    for word in ("parameters", "multiply-adds", "onnxruntime", "pytorch", "p10-p90", "2 threads", "proof", "16 -> 8"):
        assert word in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert ran.out.endswith("wrote OUT.onnx, S.pt2, R.json\n")
    stages = re.findall(r"^\[ *\d+\.\d s\] (\w+)", ran.err, re.MULTILINE)
    assert stages[:2] == ["reading", "tracing"]
    assert stages[-1] == "measuring"


def test_no_bench(slimmed: Callable[..., dict[str, Any]]) -> None:
    assert slimmed("--no-bench")["latency"] == []


@pytest.mark.parametrize(("multiple", "expected"), [("1", [5, 7]), ("8", [4, 8]), ("4", [4, 8])])
def test_multiple_of(slimmed: Callable[..., dict[str, Any]], multiple: str, expected: list[int]) -> None:
    """16 and 24 channels at 0.7 are 4.8 and 7.2: narrower than a block of 8, so that blocks of 4 are taken."""
    after = sorted(set(widths(slimmed("--ratio", 0.7, "--multiple-of", multiple)).values()))
    assert after == expected


def test_multiple_of_auto_is_the_block_of_this_machine(slimmed: Callable[..., dict[str, Any]]) -> None:
    report = slimmed("--multiple-of", "auto")
    assert report["recipe"]["block"] in (4, 8, 16)
    assert set(widths(report).values()) <= {8, 12, 16}


def test_keep(slimmed: Callable[..., dict[str, Any]]) -> None:
    report = slimmed("--keep", "block1.conv1", "--keep", "block2.*")
    dense = {name for name, tensor in Residual().state_dict().items() if name.startswith(("block1.conv1", "block2"))}
    cut = {s["parameter"] for g in report["groups"] for s in g["slices"] if s["role"] == "makes"}
    assert not dense & cut
    assert any("--keep" in pin["why"] and pin["name"] == "block1.conv1" for pin in report["pinned"])


def test_scope_global(slimmed: Callable[..., dict[str, Any]]) -> None:
    local, everywhere = widths(slimmed()), widths(slimmed("--scope", "global"))
    assert local != everywhere
    total = sum(group["before"] for group in slimmed("--scope", "global")["groups"])
    assert sum(everywhere.values()) == pytest.approx(total / 2, abs=2)


def test_seed(slimmed: Callable[..., dict[str, Any]]) -> None:
    def kept(seed: int) -> list[Any]:
        return [group["kept"] for group in slimmed("--criterion", "random", "--seed", seed)["groups"]]

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_static_batch_and_opset(command: Command, weights: Path, out: Path) -> None:
    ran = command(weights, out, "--arch", ARCH, "--input", "4x3x16x16", "--static-batch", "--opset", 21, *QUICK)
    assert ran.code == 0, ran.err
    model = onnx.load(out)
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*model.graph.input, *model.graph.output]]
    assert shapes == [[4, 3, 16, 16], [4, 5]]
    assert {o.domain: o.version for o in model.opset_import}[""] == 21


@pytest.mark.parametrize("kind", ["module", "exported program", "safetensors"])
def test_the_kinds_of_input(command: Command, out: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "in.bin"
    arch: tuple[Any, ...] = ()
    if kind == "module":
        torch.save(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), source)
        arch = ("--input", "1x6")
    elif kind == "safetensors":
        safetensors_of(trained(Residual()), source)
        arch = ("--arch", ARCH, "--input", SHAPE)
    else:
        program = torch.export.export(trained(HardCoded()), (images(1),))
        torch.export.save(program, source.with_suffix(".pt2"))
        source.with_suffix(".pt2").rename(source)
    ran = command(source, out, *arch, *QUICK)
    assert ran.code == 0, ran.err
    onnx.checker.check_model(str(out), full_check=True)


def safetensors_of(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)


def test_help_shows_every_option(command: Command) -> None:
    ran = command("--help-all")
    assert ran.code == 0
    usage = """--ratio --criterion --scope --multiple-of --arch --input --keep --report --save --bench --no-bench
               --threads --device --opset --static-batch --seed --trust-pickle --code
               --finetune --iterations --optimizer --lr --augment --distill --no-distill --alpha --temperature
               --precision --max-drop --min-speedup"""
    for option in usage.split():
        assert re.search(rf"{option}\b", ran.out), option
    assert "IN" in ran.out
    assert "OUT.onnx" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


# -- bad input ------------------------------------------------------------------------------------------------------


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


RESIDUAL = ("--arch", ARCH, "--input", SHAPE)
BAD: dict[str, Bad] = {
    "missing file": Bad(missing, RESIDUAL, ("no_such.pt", "no such file")),
    "folder": Bad(lambda folder, _: folder, RESIDUAL, ("is a folder", "Give the model file")),
    "truncated": Bad(truncated, RESIDUAL, ("cut.pt", "damaged")),
    "zip that is no model": Bad(no_model, RESIDUAL, ("photos.zip", "no PyTorch model", "photo.txt")),
    "no model at all": Bad(text, RESIDUAL, ("notes.pt", "no PyTorch model")),
    "malicious": Bad(malicious, ("--input", SHAPE), ("evil.pt", "refused", "--trust-pickle", "--arch")),
    "malicious pickle": Bad(malicious_pickle, ("--input", SHAPE), ("evil.pkl", "torch.save")),
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
    real = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self == weights:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
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
    monkeypatch.setattr(run_module(), "save", on_a_full_disk(run_module().save))
    ran = command(weights, out, *RESIDUAL, *QUICK, "--save", out.parent / f"S{suffix}")
    assert ran.code == 2
    assert f"S{suffix}" in ran.message
    assert untouched(out)


def test_a_disk_that_is_full_when_an_archive_is_saved(weights: Path, out: Path) -> None:
    """In a process of its own: PyTorch's archive writer may end the process when it cannot write."""
    code = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
        from test_slim_command import on_a_full_disk
        from slim_model import cli
        from slim_model.commands import slim as run
        run.save = on_a_full_disk(run.save)
        cli.main()
    """
    with process(weights, out, *RESIDUAL, *QUICK, "--save", out.parent / "S.pt2", code=code) as running:
        _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 2, err
    assert "S.pt2" in err
    assert "Traceback" not in err
    assert untouched(out)


def on_a_full_disk(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work`` with a system that refuses to write files of more than 1 kB."""
    import resource

    def limited(*arguments: Any, **options: Any) -> Any:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            return work(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


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


@pytest.mark.parametrize("opset", [17, 99])
def test_an_opset_that_cannot_be_written(command: Command, weights: Path, out: Path, opset: int) -> None:
    """The exporter takes any number and writes another."""
    ran = command(weights, out, *RESIDUAL, *QUICK, "--opset", opset)
    assert ran.code == 2
    assert f"--opset {opset}" in ran.message
    assert untouched(out)


# -- proofs that fail, and faults of ours ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "axis"),
    [("block1.conv2.weight", 0), ("block2.conv1.weight", 1), ("bn.running_mean", 0), ("fc.weight", 1)],
)
def test_a_wrong_slice_is_caught(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, parameter: str, axis: int
) -> None:
    """The small model gets the right number of channels, but in the wrong order."""
    from slim_model.cutting import shrink_graph as shrink

    right = shrink._sliced

    def wrong(coupling: Any, cut: Any, owner: str) -> torch.Tensor:
        tensor = right(coupling, cut, owner)
        return tensor.roll(1, axis) if owner == parameter else tensor

    monkeypatch.setattr(shrink, "_sliced", wrong)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 4
    assert "could not be proven" in ran.message
    assert untouched(out)


def test_a_slice_that_is_wrong_only_where_it_is_cut_is_left_whole(
    slimmed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be shown to be right is pinned, and the report says so."""
    from slim_model.cutting import shrink_graph as shrink

    right, name = shrink._sliced, "block1.conv1.weight"

    def wrong(coupling: Any, cut: Any, owner: str) -> torch.Tensor:
        tensor = right(coupling, cut, owner)
        cut_here = owner == name and tensor.shape[0] < coupling.graph.tensors[owner].shape[0]
        return tensor.roll(1, 0) if cut_here else tensor

    monkeypatch.setattr(shrink, "_sliced", wrong)
    report = slimmed()
    assert "block1.conv1" not in widths(report)
    assert any("could not be shown to be exact" in pin["why"] for pin in report["pinned"])
    assert widths(report)["block2.conv1"] == 12


def test_onnxruntime_that_differs_is_caught(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slim_model.export import check_onnx as export

    right = export.run_onnx
    monkeypatch.setattr(export, "run_onnx", lambda *a: [x + 1e-3 * np.abs(x).max() for x in right(*a)])
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 4
    assert "onnxruntime differs" in ran.message
    assert untouched(out)


def test_an_invalid_onnx_file_is_caught(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: Any, path: str, **_: Any) -> None:
        wrong = self.model_proto
        wrong.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(wrong, path)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code in (1, 4)
    assert "NoSuchOperator" in ran.message
    assert untouched(out)


def test_a_fault_of_ours_is_called_that(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a stage divided by zero")

    monkeypatch.setattr(pipeline(), "couple_attention", fail)
    ran = command(weights, out, *RESIDUAL)
    assert ran.code == 1
    assert "ZeroDivisionError: a stage divided by zero" in ran.message
    assert "fault of slim-model" in ran.err
    assert untouched(out)
    assert "Traceback" not in ran.err
    monkeypatch.setenv("SLIM_MODEL_DEBUG", "1")
    assert "Traceback" in command(weights, out, *RESIDUAL).err


@pytest.mark.parametrize("stage", ["_measure", "make_report"])
def test_a_fault_after_the_checks_leaves_the_older_file_too(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a late stage divided by zero")

    monkeypatch.setattr(run_module(), stage, fail)
    ran = command(weights, out, *RESIDUAL, *(QUICK if stage == "make_report" else ()))
    assert ran.code == 1
    assert "OUT.onnx is as it was" in ran.err
    assert untouched(out)


def pipeline() -> Any:
    return sys.modules["slim_model.pipeline.compile"]


# -- interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["load", "compile_model", "to_onnx", "check_onnx"])
def test_ctrl_c_in_a_stage(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupted(*arguments: Any, **_: Any) -> None:
        if stage == "to_onnx":
            arguments[1].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module(), stage, interrupted)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 130
    assert "interrupted" in ran.err
    assert "Traceback" not in ran.err
    assert untouched(out)


def run_module() -> Any:
    from slim_model.commands import slim

    return slim


TIMEOUT = 120  # seconds; some 5 are needed on a quiet machine


def process(*arguments: Any, code: str = "from slim_model.cli import main; main()") -> subprocess.Popen[str]:
    """The command in a process of its own, as from a terminal: what a shell starts in the background ignores SIGINT,
    and so do its children."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(slim_model.__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(running: subprocess.Popen[str], stage: str) -> None:
    assert running.stderr is not None
    said = iter(running.stderr.readline, "")
    assert any(stage in line for line in said), "the stage never came"


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGINT, "tracing"),
        (signal.SIGINT, "writing"),
        (signal.SIGTERM, "writing"),
        (signal.SIGKILL, "writing"),
        (signal.SIGKILL, "measuring"),
    ],
)
def test_a_signal_leaves_no_partial_file(weights: Path, out: Path, stage: str, number: signal.Signals) -> None:
    with process(weights, out, *RESIDUAL) as running:
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


# -- places to print to ---------------------------------------------------------------------------------------------


def test_a_screen_without_unicode(weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is wider than the screen, so that something has to be left out."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", screen)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (weights, out, *RESIDUAL, *QUICK)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 0
    screen.seek(0)
    assert "16 -> 8" in screen.read()
