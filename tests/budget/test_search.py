"""From a goal to a plan: files as large as was asked, latency that corrects itself on a machine made up of arithmetic,
and scans of how sensitive layers are."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from slim_model.budget import latency_search
from slim_model.budget.allocations import allocation_of
from slim_model.budget.goal import Goal, Met, Task
from slim_model.budget.ratio import plan_by_ratio
from slim_model.budget.search import plan_for, plan_within_limit
from slim_model.budget.sensitivity import scan
from slim_model.commands.slim import run_job
from slim_model.cost.counted import CostModel
from slim_model.cost.latency_table import Setting, make_table
from slim_model.cost.layer_models import layers_of
from slim_model.cost.prices import PRICES
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.data.batches import Data
from slim_model.data.open_data import open_data
from slim_model.errors import BudgetError, InputError
from slim_model.graph.trace import trace
from slim_model.loading.source import Source, SourceOptions
from slim_model.quantizing.options import QuantizingOptions
from slim_model.ranking.score import score
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from slim_model.reporting.acceptance import int8_above_limit
from slim_model.reporting.sensitivity_plot import plot
from slim_model.simplifying.simplify import simplify
from small_nets import images, trained

LABELS = torch.arange(24) % 10


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 64, 3, padding=1)
        self.c = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def wide() -> Coupling:
    return couple(simplify(trace(trained(Wide()), (images(),))))


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [Recipe.of(target="bytes=60kB"), Recipe.of(0.4, of="bytes", allocate="greedy")])
def test_the_file_is_as_large_as_was_asked(recipe: Recipe, tmp_path: Path) -> None:
    torch.save(trained(Wide()), tmp_path / "in.pt")
    job = Job(
        Source(tmp_path / "in.pt", SourceOptions(inputs=("2x3x16x16",), trust_pickle=True)),
        tmp_path / "out.onnx",
        recipe.but(bench=False),
    )
    report = run_job(job, lambda stage: None)
    size, limit = (tmp_path / "out.onnx").stat().st_size, report.budget["limit"]
    assert 0.96 * limit <= size <= limit  # of the file as it is published, with its metadata
    assert report.as_dict()["budget"]["of"] == "bytes"


def test_a_file_that_cannot_come_close_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 15), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    torch.save(trained(model), tmp_path / "in.pt")
    source = Source(tmp_path / "in.pt", SourceOptions(inputs=("2x3x16x16",)))
    job = Job(source, tmp_path / "out.onnx", Recipe.of(target="bytes=7kB", bench=False))
    with pytest.raises(BudgetError, match=r"bytes cannot come close to 0\.007 MB: .* 0\.00[3-6]\d* MB is the nearest"):
        run_job(job, lambda stage: None)
    assert not (tmp_path / "out.onnx").exists()


def noise_file(place: Path) -> str:
    draw = np.random.default_rng(0)
    np.savez(place, x=draw.normal(size=(50, 3, 16, 16)).astype(np.float32), y=draw.integers(10, size=50))
    return f"npz:{place}"


def test_the_limit_is_that_of_the_int8_file(tmp_path: Path) -> None:
    """As fp32 no file of this model is so small with so many channels."""
    torch.save(trained(Wide()), tmp_path / "in.pt")
    job = Job(
        Source(tmp_path / "in.pt", SourceOptions(inputs=("2x3x16x16",), trust_pickle=True)),
        tmp_path / "out.onnx",
        Recipe.of(
            target="bytes=24kB", data=noise_file(tmp_path / "data.npz"), int8=True, min_agreement=0.1, bench=False
        ),
    )
    report = run_job(job, lambda stage: None)
    size = (tmp_path / "out.onnx").stat().st_size
    assert report is not None
    assert report.int8 is not None
    assert report.int8.written
    assert 0.95 * 24_000 <= size <= 24_000 < report.slim["bytes"] / 2
    assert report.budget["dense"] == pytest.approx(report.dense["bytes"], rel=0.05)  # of fp32


@pytest.mark.parametrize(
    ("of", "target", "written", "size", "said"),
    [
        ("bytes", "bytes=9kB", True, 9_000, ""),
        ("bytes", "bytes=9kB", True, 9_001, "as int8 it has 9,001 bytes, 9,000 are allowed"),
        ("bytes", "bytes=9kB", False, 8_000, "its bytes is within the limit as int8 alone, and fp32 was kept"),
        ("latency", "latency=9ms", False, 8_000, "its latency is within the limit as int8 alone, and fp32 was kept"),
        ("latency", "latency=9ms", True, 9_001, ""),
        ("bytes", None, False, 8_000, ""),
        ("macs", "macs=9k", False, 8_000, ""),
    ],
)
def test_a_limit_that_int8_was_to_meet(of: str, target: str | None, written: bool, size: int, said: str) -> None:
    int8 = SimpleNamespace(written=written, why="fp32 was kept", int8_bytes=size)
    report: Any = SimpleNamespace(
        budget={"of": of, "limit": 9_000.0, "dense": 20_000.0},
        int8=int8,
        recipe={"budget": {"target": target}},
        slim={"bytes": 12_000},
        latency=[{"runtime": "onnxruntime", "slim": {"median_ms": 2.0}, "dense": {"median_ms": 4.0}}],
    )
    assert int8_above_limit(report) == said
    # fp32, where that is what was kept, within the limit: a time is as long as if the dense model took 20 s, as it did
    report.slim["bytes"], report.latency[0]["slim"]["median_ms"] = 9_000, 1.8
    assert int8_above_limit(report) == (said if written else "")
    report.int8 = None
    assert int8_above_limit(report) == ""


def test_plans_are_timed_as_int8(wide: Coupling, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed against the dense fp32 file is int8, in the form that is fastest for the dense model."""
    seen: list[list[str]] = []

    def medians(self: Any, *files: Path) -> list[float]:
        seen.append([form_of(file) for file in files])
        return [{"fp32": 4.0, "s8s8": 1.0}.get(form_of(file), 2.0) for file in files]

    monkeypatch.setattr(latency_search._Whole, "_medians", medians)
    row = latency_search.runtime_on("cpu")
    with latency_search._Whole(row, wide.graph, 1, lambda stage: None, QuantizingOptions(int8=True)) as whole:
        assert (whole.dense_ms, whole.full_ms) == (4.0, 1.0)
        assert whole.ms(task_of(wide, score(wide, "l1"), Goal(0.5)), plan_by_ratio(wide, score(wide, "l1"), 0.5)) == 1.0
    forms = ["u8s8", "u8s8", "s8s8", "u8u8"]  # seven bits are a range of eight
    assert seen == [["fp32", "fp32"], forms, ["fp32", "s8s8"], ["fp32", "s8s8"]]


def test_a_machine_that_slows_down_changes_nothing(wide: Coupling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit follows from the dense model as it was at first; then another job makes all three times as slow."""
    slower = iter((1.0, 3.0))

    def medians(self: Any, *files: Path) -> list[float]:
        now = next(slower)
        return [now * (4.0 if file.stem == "dense" else 1.0) for file in files]

    monkeypatch.setattr(latency_search._Whole, "_medians", medians)
    with latency_search._Whole(latency_search.runtime_on("cpu"), wide.graph, 1, lambda stage: None) as whole:
        assert whole.dense_ms == 4.0
        assert whole.ms(task_of(wide, score(wide, "l1"), Goal(0.5)), plan_by_ratio(wide, score(wide, "l1"), 0.5)) == 1.0


def form_of(file: Path) -> str:
    """By the types of what is stored: "u8s8" for activations without a sign and weights with one."""
    kinds = {onnx.TensorProto.UINT8: "u8", onnx.TensorProto.INT8: "s8"}
    stored = {t.name: kinds.get(t.data_type, "") for t in onnx.load(file).graph.initializer}
    scales = [n.input[2] for n in onnx.load(file).graph.node if n.op_type == "QuantizeLinear"]
    weights = [kind for name, kind in stored.items() if name.endswith("weight_quantized")]
    return stored[scales[0]] + weights[0] if scales else "fp32"


# -- latency --------------------------------------------------------------------------------------------------------


class Machine:
    """A layer takes as many ms as the table has of it times ``slower``; the whole model ``rest`` more."""

    def __init__(self, slower: float, rest: float = 0.5, noise: float = 0.0) -> None:
        self.slower, self.rest, self.timed = slower, rest, 0
        self.random = np.random.default_rng(0)
        self.noise = noise

    def whole(self, macs: int) -> float:
        self.timed += 1
        return (self.rest + self.slower * macs / 1e6) * float(1 + self.noise * self.random.standard_normal())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, wide: Coupling) -> Machine:
    """The table says 1 ms for a million multiply-adds; how the machine differs is set by the test."""
    made, meter = Machine(1.0), CostModel(wide)
    setting = Setting("none", "fake", "1", 1, "float32", 1)

    def survey(placed: object, job: object, progress: object) -> object:
        table = make_table(setting, {})
        points = {
            layer: layer.count * np.prod(layer.widths) * (9 * 256 if layer.kind == "conv" else 1) / 1e6
            for p in layers_of(wide)
            for layer in table.grid(p)
        }
        return make_table(setting, points)

    class Whole(latency_search._Whole):
        def __enter__(self) -> Whole:
            self.dense_ms = self.full_ms = made.whole(meter().macs)
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def ms(self, task: Task, plan: object, pays: object = None) -> float:
            return made.whole(meter(plan.keep).macs)  # type: ignore[attr-defined]

    monkeypatch.setattr(latency_search, "measure_layers", survey)
    monkeypatch.setattr(latency_search, "_Whole", Whole)
    return made


def aimed(coupling: Coupling, goal: Goal, allocate: str = "uniform") -> Met:
    goal = dataclasses.replace(goal, allocation=allocation_of(allocate))
    return plan_within_limit(task_of(coupling, score(coupling, "l1"), goal))[1]


def task_of(coupling: Coupling, scores: list[torch.Tensor], goal: Goal, data: Data | None = None) -> Task:
    return Task(nn.Identity(), coupling.graph, coupling, scores, goal, data=data)


@pytest.mark.parametrize("slower", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("allocate", ["uniform", "greedy", "knapsack"])
def test_latency_is_met_though_the_table_is_wrong(
    wide: Coupling, machine: Machine, slower: float, share: float, allocate: str
) -> None:
    machine.slower = slower
    dense = machine.whole(CostModel(wide)().macs)
    met = aimed(wide, Goal(0.5, PRICES["latency"], share * dense), allocate)
    assert 0.95 * met.limit <= met.reached <= met.limit
    assert met.trials[-1][1] == pytest.approx(met.reached, abs=1e-3)
    assert met.dense == pytest.approx(dense)


def test_multiply_adds_by_what_is_fast(wide: Coupling, machine: Machine) -> None:
    """The table of layers is asked for, the whole model is not timed."""
    found = aimed(wide, Goal(0.5, PRICES["macs"]), "latency")
    assert 0.98 <= found.reached / found.limit <= 1
    assert machine.timed == 0


def test_a_ratio_of_latency(wide: Coupling, machine: Machine) -> None:
    met = aimed(wide, Goal(0.4, PRICES["latency"]))
    assert met.limit == pytest.approx(0.6 * met.dense)


def test_noise_does_not_end_above_the_limit(wide: Coupling, machine: Machine) -> None:
    machine.noise = 0.01
    for _ in range(5):
        met = aimed(wide, Goal(0.5, PRICES["latency"]))
        assert 0.95 * met.limit <= met.reached <= met.limit


@pytest.mark.parametrize("share", [0.7, 0.6, 0.5])
def test_latency_that_is_no_line_is_met(wide: Coupling, machine: Machine, share: float) -> None:
    """Narrow layers take far longer than their work: a line from the dense model never gets there."""
    machine.whole = lambda macs: 1.0 + 3 * (macs / CostModel(wide)().macs) ** 0.25  # type: ignore[method-assign]
    met = aimed(wide, Goal(0.5, PRICES["latency"], share * 4.0 + 0.3))
    assert 0.95 * met.limit <= met.reached <= met.limit


def test_a_latency_out_of_reach_names_the_least_that_was_measured(wide: Coupling, machine: Machine) -> None:
    with pytest.raises(BudgetError, match=r"cannot come down to 0\.4 ms.*0\.5\d* ms were measured"):
        aimed(wide, Goal(0.5, PRICES["latency"], 0.4))


def test_a_latency_that_is_met_already(wide: Coupling, machine: Machine) -> None:
    with pytest.raises(BudgetError, match="as it is, no more than"):
        aimed(wide, Goal(0.5, PRICES["latency"], 1e4))


def test_a_machine_that_does_as_it_likes_is_given_up(wide: Coupling, machine: Machine) -> None:
    """It takes ten times as long once the dense model was timed."""
    steady = machine.whole
    machine.whole = lambda macs: steady(macs) * (10 if machine.timed else 1)  # type: ignore[method-assign]
    with pytest.raises(BudgetError, match=r"no plan was measured within 3\.00 ms|cannot come down"):
        aimed(wide, Goal(0.5, PRICES["latency"], 3.0))


def test_what_is_within_the_limit_is_handed_out_where_nothing_comes_close(wide: Coupling, machine: Machine) -> None:
    """Every other time it takes ten times as long, and a tenth between."""
    steady = machine.whole
    machine.whole = lambda macs: steady(macs) * (10 if machine.timed % 2 else 0.1)  # type: ignore[method-assign]
    met = aimed(wide, Goal(0.5, PRICES["latency"], 3.0))
    assert met.reached <= met.limit


# -- sensitivity ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(wide: Coupling) -> Data:
    return open_data([(images(24), LABELS)], wide.graph.inputs, samples=24, batch=10)


def without(model: nn.Module, layer: str, channels: Tensor) -> nn.Module:
    changed = copy.deepcopy(model)
    conv = changed.get_submodule(layer)
    with torch.no_grad():
        conv.weight[channels] = 0  # type: ignore[index]
        conv.bias[channels] = 0  # type: ignore[index]
    return changed


def test_a_scan_by_brute_force(wide: Coupling, data: Data) -> None:
    model, x = trained(Wide()), images(24)
    scores = score(wide, "l1")
    found = scan(wide, scores, data)
    right = scan(wide, scores, data, measure="accuracy")
    with torch.no_grad():
        dense = model(x)
        spread = (dense - dense.mean(0)).square().sum(1).mean()
        for name, group_score, (shares, lost), (_, wrong) in zip(
            found.names, scores, found.curves, right.curves, strict=True
        ):
            for share, error, drop in zip(shares, lost, wrong, strict=True):
                gone = torch.sort(group_score, stable=True).indices[: round(share * len(group_score))]
                small = without(model, name, gone)(x)
                assert error == pytest.approx(
                    float((small - dense).square().sum(1).mean() / spread), rel=1e-5, abs=1e-5
                )
                hits = ((out.argmax(1) == LABELS).float().mean() for out in (dense, small))
                assert drop == pytest.approx(float(next(hits) - next(hits)), abs=1e-6)


def test_a_scan_goes_on_where_it_was(wide: Coupling, data: Data, tmp_path: Path) -> None:
    path, scores = tmp_path / "scan.jsonl", score(wide, "l1")
    whole = scan(wide, scores, data, path=path)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["group"] for line in lines] == list(whole.names)
    path.write_text(lines[0] + "\n" + lines[1][:20])  # killed while it wrote
    said: list[str] = []
    again = scan(wide, scores, data, path=path, progress=said.append)
    assert len(said) == len(whole.names) - 1
    for (_, a), (_, b) in zip(whole.curves, again.curves, strict=True):
        np.testing.assert_allclose(a, b)


def test_a_scan_of_something_else_is_not_used(wide: Coupling, data: Data, tmp_path: Path) -> None:
    path = tmp_path / "scan.jsonl"
    scan(wide, score(wide, "l1"), data, path=path)
    with pytest.raises(InputError, match="holds a scan of another model, data or criterion"):
        scan(wide, score(wide, "l2"), data, path=path)
    with pytest.raises(InputError, match="holds a scan of another"):
        scan(wide, score(wide, "l1"), dataclasses.replace(data, samples=7), path=path)


def test_a_scan_of_accuracy_needs_labels(wide: Coupling) -> None:
    unlabelled = open_data([images(4)], wide.graph.inputs)
    with pytest.raises(InputError, match="no labels"):
        scan(wide, score(wide, "l1"), unlabelled, measure="accuracy")


def test_damage_spares_the_layer_whose_loss_the_outputs_show(data: Data) -> None:
    """Half of the first layer repeats the other half: that can be made up for. The second is scaled up to matter."""
    model = trained(Wide())
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias):  # type: ignore[union-attr]
            tensor[24:] = tensor[:24]
    coupling = couple(simplify(trace(model, (images(),))))
    calibration = open_data([images(24)], coupling.graph.inputs, samples=24)
    scores = score(coupling, "reconstruction", data=calibration)
    goal = Goal(0.45, PRICES["macs"], allocation=allocation_of("damage"))
    plan, _ = plan_within_limit(task_of(coupling, scores, goal, calibration))
    first, second = (after / before for before, after in plan.widths)
    assert first < 0.6
    assert second > 0.9


def test_the_scan_decides_and_is_drawn(wide: Coupling, data: Data, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "scan.jsonl"
    for name in ("sensitivity", "sensitivity:measure=accuracy"):
        place = path.with_stem(name.replace(":", "-"))
        goal = Goal(0.5, PRICES["macs"], allocation=allocation_of(name), scan=place)
        choice = plan_for(task_of(wide, score(wide, "l1"), goal, data))
        plan, met = choice.plan, choice.met
        assert met is not None
        assert 0.98 * met.limit <= CostModel(wide)(plan.keep).macs <= met.limit
        assert choice.scan is not None
        plot(choice.scan, place.with_suffix(".svg"))
        assert place.with_suffix(".svg").read_text().startswith("<?xml")
