"""Sweeps: every combination once, what is shared found once, what was written used again, the best one chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from slim_model.cli import run as command
from slim_model.commands import sweep as sweeping
from slim_model.errors import InputError
from slim_model.pipeline import compile as pipeline
from slim_model.recipe_files.read import read_job
from slim_model.reporting.condition import FIGURES, read_condition
from slim_model.reporting.headline import figures_for_machines, figures_of
from slim_model.reporting.pareto import front, trade_offs
from small_nets import RECIPE, Residual, trained


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.save(trained(Residual()).state_dict(), tmp_path / "in.pt")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the stages that points share were called, and how many points ran."""
    calls = {"capture": 0, "score": 0, "run_job": 0}
    for module, name in ((pipeline, "capture"), (pipeline, "score"), (sweeping, "run_job")):
        original = getattr(module, name)

        def counted(*arguments: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            calls[_name] += 1
            return _original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)
    return calls


def test_a_sweep_is_its_runs(
    folder: Path, calls: dict[str, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files as single runs, byte for byte; shared stages once; a second sweep runs only what is missing."""
    asked = ["sweep", "recipe.toml", "--ratio", "0.25,0.5", "--criterion", "l1,l2", "--best", "macs<1e12"]
    assert command(asked) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert calls == {"capture": 1, "score": 2, "run_job": 4}
    names = [f"ratio={ratio},criterion={criterion}" for ratio in (0.25, 0.5) for criterion in ("l1", "l2")]
    points = folder / "out.sweep"
    assert {path.name for path in points.iterdir()} == {f"{name}{end}" for name in names for end in (".onnx", ".json")}
    single = ["run", "recipe.toml", "--ratio", "0.5", "--criterion", "l2", "--onnx", "single.onnx"]
    assert command(single) == 0
    once = (points / f"{names[3]}.onnx").read_bytes()
    assert (folder / "single.onnx").read_bytes() == once
    chosen = (folder / "out.onnx").read_bytes()  # both at 0.5 have as few multiply-adds; the first one is taken
    assert chosen == (points / f"{names[2]}.onnx").read_bytes()
    assert f"wrote out.onnx: {names[2]}" in said

    (points / f"{names[0]}.json").unlink()
    (points / f"{names[1]}.json").write_text("{")
    calls["run_job"] = 0
    assert command([*asked, "--html", "points.html"]) == 0
    assert calls["run_job"] == 2
    assert names[1] in (folder / "points.html").read_text()
    torch.save({k: v * 1.5 for k, v in torch.load(folder / "in.pt").items()}, folder / "in.pt")
    calls["run_job"] = 0
    assert command(asked) == 0
    assert calls["run_job"] == 4  # another model
    onnx.checker.check_model(str(folder / "out.onnx"))


def test_a_point_that_fails_is_told_and_the_others_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["sweep", "recipe.toml", "--target", "macs=1", "--target", "macs=1.5M", "--best", "macs<1"]) == 3
    told = " ".join("".join(capsys.readouterr()).split())
    assert "failed: target=macs=1:" in told
    assert "no point meets macs<1" in told
    assert not (folder / "out.onnx").exists()
    assert command(["sweep", "recipe.toml", "--target", "macs=1", "--target", "macs=1.5M"]) == 3
    assert "1 of 2 points failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--ratio", "0.5,2"], "ratio 2.0 is not between 0 and 1"),
        (["--ratio", "half,0.5"], "--ratio half: it is no number"),
        (["--best", "beauty>1"], "is no condition"),
        (["--recover", "affine,none"], "recover affine needs data"),
        (["--into", "in.pt"], "cannot make the folder in.pt"),
    ],
)
def test_mistakes_are_told_before_any_work(
    asked: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["sweep", "recipe.toml", *asked]) == 2
    assert told in capsys.readouterr().err


def test_no_two_points_share_their_files(folder: Path) -> None:
    """Values that differ in what no name of a file may hold once wrote over each other, and each other's were used
    again. A name that is too long for a system is cut."""
    long = [f"layer{'1' * 300}.{end}" for end in "ab"]
    values = {"keep": [("a/b",), ("a:b",), ("a_b",), *((name,) for name in long)], "ratio": [0.25]}
    job = read_job(folder / "recipe.toml")
    points = dict(sweeping._points(sweeping.Sweep(job, values, folder / "points")))
    assert list(points)[:3] == ["keep=a/b,ratio=0.25", "keep=a:b,ratio=0.25", "keep=a_b,ratio=0.25"]
    files = [point.target.name for point in points.values()]
    assert len(set(files)) == len(points) == 5
    assert files[2] == "keep=a_b,ratio=0.25.onnx"
    assert all(len(name) < 200 for name in files)


def test_what_only_a_single_run_writes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.toml").write_text(RECIPE + 'save = "small.pt2"\n')
    assert command(["sweep", "recipe.toml", "--ratio", "0.3,0.5"]) == 2
    assert "a sweep does not write save" in capsys.readouterr().err


def report_with(accuracy: float | None, ms: float) -> dict[str, Any]:
    row = {"runtime": "onnxruntime", "slim": {"median_ms": ms}, "speedup_low": 10 / ms}
    steps = [{"accuracy": accuracy, "did": {"agreement_after": accuracy}}] if accuracy else []
    return {"slim": {"macs": 5, "params": 4, "bytes": 3}, "latency": [row], "steps": steps}


def test_conditions_read_what_they_name() -> None:
    report = report_with(0.9, 4.0)
    values = {name: read(report) for name, read in FIGURES.items()}
    shares, counts = {"accuracy": 0.9, "agreement": 0.9}, {"macs": 5, "params": 4, "bytes": 3}
    assert values == {**shares, "speedup": 2.5, "latency": 4.0, **counts}
    for text, holds in (("accuracy>=0.9", True), ("accuracy > 0.9", False), ("latency<=4", True), ("macs<5e0", False)):
        assert read_condition(text).holds(report) is holds, text
    assert not read_condition("accuracy<1").holds(report_with(None, 1.0))
    for wrong in ("", "accuracy", "accuracy=1", "macs<1.2.3", "accuracy>=high"):
        with pytest.raises(InputError):
            read_condition(wrong)


def test_figures_are_those_of_the_file_that_was_written() -> None:
    """Where that is int8, a condition once held or not by the size and speed of the fp32 file that was thrown away."""
    against = {"runtime": "onnxruntime", "dense": {"median_ms": 6.0}, "slim": {"median_ms": 2.0}}
    against |= {"speedup": 3.0, "speedup_low": 2.9, "speedup_high": 3.5}
    fp32 = report_with(0.9, 4.0) | {"dense": {"macs": 9, "params": 9, "bytes": 9}}
    fp32["channels"] = {"dense": 4, "slim": 2, "removed_share": 0.5}
    fp32["latency"][0] |= {"dense": {"median_ms": 6.0}, "speedup": 1.5, "speedup_high": 3.0}
    for written in (False, True):
        report = fp32 | {"int8": {"written": written, "int8_bytes": 1, "against_dense": against}}
        known = {name: FIGURES[name](report) for name in ("bytes", "latency", "speedup")}
        assert list(known.values()) == ([1, 2.0, 2.9] if written else [3, 4.0, 2.5])
        assert figures_for_machines(report)["bytes"] == known["bytes"]
        shown = {figure.name: figure.value for figure in figures_of(report) if figure.name.startswith("int8: ")}
        assert shown == ({"int8: file": 1, "int8: latency, onnxruntime": 2.0} if written else {})
    small = fp32 | {"int8": {"written": True, "int8_bytes": 1, "against_dense": against | {"slim": {"median_ms": 0.1}}}}
    assert sweeping.fastest({"fp32": report_with(0.9, 1.0), "int8": small}, read_condition("bytes<3")) == "int8"


def test_the_fastest_that_holds_is_chosen() -> None:
    reports = {"slow": report_with(0.95, 3.0), "fast": report_with(0.92, 1.0), "wrong": report_with(0.8, 0.5)}
    assert sweeping.fastest(reports, read_condition("accuracy>=0.91")) == "fast"
    assert sweeping.fastest(reports, read_condition("accuracy>=0.99")) is None


def test_the_front_is_what_no_run_beats() -> None:
    assert front([(1, 0.5), (2, 0.5), (2, 0.7), (3, 0.6), (1, 0.5)]) == [True, False, True, False, True]
    reports = {"a": report_with(0.9, 1.0), "b": report_with(0.8, 2.0)}
    latency, *_ = trade_offs(reports)
    assert [(name, best) for name, *_, best in latency.points] == [("a", True), ("b", False)]
    assert list(trade_offs({"a": report_with(None, 1.0), "b": report_with(None, 2.0)})) == []
    assert json.dumps(latency)  # plain values


def test_a_recipe_that_changed_runs_again(folder: Path, calls: dict[str, int]) -> None:
    """Also where the earlier value is one that a run may decide by itself."""
    asked = ["sweep", "recipe.toml", "--ratio", "0.25,0.5"]
    assert command([*asked, "--multiple-of", "4"]) == 0
    assert command([*asked, "--multiple-of", "4"]) == 0
    assert calls["run_job"] == 2
    for other in (["--multiple-of", "2"], ["--multiple-of", "2", "--recover", "data-free"], ["--multiple-of", "2"]):
        calls["run_job"] = 0
        assert command([*asked, *other]) == 0
        assert calls["run_job"] == 2, other


def test_seeds_are_runs_of_their_own(folder: Path, calls: dict[str, int]) -> None:
    """Example inputs are drawn from the seed, too."""
    assert command(["sweep", "recipe.toml", "--seed", "1,2", "--criterion", "random"]) == 0
    assert (calls["capture"], calls["score"]) == (2, 2)
    assert command(["run", "recipe.toml", "--seed", "2", "--criterion", "random", "--onnx", "single.onnx"]) == 0
    assert (folder / "out.sweep/seed=2.onnx").read_bytes() == (folder / "single.onnx").read_bytes()


def test_the_report_of_the_best_point_repeats_its_run(folder: Path) -> None:
    """As OUT.onnx, where the sweep put it; weights beside a large file come with it."""
    assert command(["sweep", "recipe.toml", "--ratio", "0.25,0.5", "--best", "macs<1e12"]) == 0
    once = (folder / "out.onnx").read_bytes()
    (folder / "out.onnx").unlink()
    assert command(["run", "report.json"]) == 0
    assert (folder / "out.onnx").read_bytes() == once
    assert json.loads((folder / "report.json").read_text())["recipe"]["outputs"]["onnx"] == "out.onnx"
    (folder / "out.sweep/ratio=0.5.onnx.data").write_bytes(b"weights")
    assert command(["sweep", "recipe.toml", "--ratio", "0.25,0.5", "--best", "macs<1e12"]) == 0
    assert (folder / "ratio=0.5.onnx.data").read_bytes() == b"weights"


def test_a_search_runs_as_many_points_as_it_may(folder: Path, calls: dict[str, int]) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    asked = ["sweep", "recipe.toml", "--ratio", "0.25,0.5", "--criterion", "l1,l2", "--search", "2", "--quiet"]
    assert command(asked) == 0
    assert calls["run_job"] == 2
    assert len(list((folder / "out.sweep").glob("*.onnx"))) == 2
