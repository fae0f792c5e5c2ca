"""The command: what it writes, prints and returns."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import slim_model
import small_nets
from command_runs import ARCH, QUICK, RESIDUAL, Command, widths
from slim_model.cli import main
from small_nets import SHAPE, HardCoded, Residual, images, trained


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
    assert report["recipe"]["budget"]["multiple_of"] in (4, 8, 16)
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
