"""The latency table on a runtime of our own, whose time is a formula: steps, ladders, predictions, what is on disk."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slim_model import cli
from slim_model.commands import profile as learn
from slim_model.cost import latency_store
from slim_model.cost import latency_table as profile
from slim_model.cost import measure_layers as survey
from slim_model.cost.latency_model import ModelLatency, model_latency
from slim_model.cost.latency_store import (
    append_points,
    cache_folder,
    measured_step,
    read_table,
    setting_of,
    table_path,
    width_step,
)
from slim_model.cost.latency_table import (
    PROBED,
    PROBES,
    LatencyTable,
    Setting,
    learned_step,
    make_table,
    widths_to_measure,
)
from slim_model.cost.layer_models import Placed, layers_of
from slim_model.cost.measure_layers import MeasuringJob
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.errors import InputError
from slim_model.graph.trace import trace
from slim_model.measuring.runtimes import RUNTIMES, Runtime
from slim_model.measuring.timing import interleave
from slim_model.ops import LayerShape
from slim_model.simplifying.simplify import simplify
from small_nets import Residual, images, trained

SETTING = Setting("a machine", "fake", "1", 1, "float32", 1)
MS = 1_000_000
CALL_MS = 1.0


def staircase_ms(layer: LayerShape, step: int = 8) -> float:
    """A call, and a microsecond for each product of the widths, each rounded up to the step."""
    if layer.kind == "nothing":
        return CALL_MS
    return CALL_MS + layer.count * math.prod(math.ceil(w / step) * step if w > 1 else 1 for w in layer.widths) / 1e3


class FakeRuntime:
    """Takes what ``cost`` says on a clock of its own; ``log`` holds the layers that ran."""

    def __init__(self, cost: Callable[[LayerShape], float] = staircase_ms) -> None:
        self.cost, self.now, self.log = cost, 0, list[LayerShape]()
        self.row = Runtime("fake", "cpu", "module", lambda: None, self.prepare, ())

    def prepare(self, layer: Any, inputs: Any, threads: int) -> Callable[[], None]:
        def run() -> None:
            self.now += int(self.cost(layer) * MS)
            self.log.append(layer)

        return run

    def job(self, cache: Path, setting: Setting = SETTING) -> MeasuringJob:
        return MeasuringJob(self.row, setting, cache, lambda: self.now)


@pytest.fixture(autouse=True)
def _layers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake runtime is handed the layer itself."""
    monkeypatch.setattr(survey, "module_of_layer", lambda layer, dtype: layer)
    monkeypatch.setattr(survey, "example_inputs", lambda layer, dtype: [])


@pytest.fixture(scope="module")
def residual() -> Coupling:
    return couple(simplify(trace(trained(Residual()), (images(),))))


def all_of(coupling: Coupling) -> np.ndarray:
    return coupling.keep_all()


def half_of(coupling: Coupling) -> np.ndarray:
    keep = all_of(coupling)
    for group in coupling.groups:
        keep[group.channels[group.width // 2 :]] = False
    return keep


# -- the width step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4, 8, 16, 32, 64])
def test_the_step_of_a_staircase(step: int) -> None:
    assert learned_step({w: math.ceil(w / step) * step for w in PROBED}) == step


def test_no_step_where_there_is_no_staircase() -> None:
    assert learned_step({w: float(w) for w in PROBED}) == 1
    assert learned_step(dict.fromkeys(PROBED, 5.0)) == 1, "a time that does not depend on the width says nothing"


def test_a_dear_width_hides_no_step() -> None:
    """Widths that 4 does not divide fall to a kernel that takes three times as long."""
    assert learned_step({w: math.ceil(w / 16) * 16 * (1 if w % 4 == 0 else 3) for w in PROBED}) == 16


def test_noise_hides_no_step() -> None:
    noise = np.random.default_rng(0).normal(1, 0.02, len(PROBED))
    assert learned_step({w: math.ceil(w / 16) * 16 * n for w, n in zip(PROBED, noise, strict=True)}) == 16
    assert learned_step({w: w * n for w, n in zip(PROBED, noise, strict=True)}) <= 4


def test_penalties_by_what_divides_the_width() -> None:
    probe = PROBES["depthwise"][0]
    cost = {w: math.ceil(w / 16) * (1.0 if w % 4 == 0 else 3.0) for w in PROBED}
    table = make_table(SETTING, {layer: cost[layer.widths[0]] for layer in profile.probe_layers(probe, 0)})
    assert table.steps == {("depthwise", 0): 16}
    assert table.penalties["depthwise", 0] == {1: 3.0, 2: 3.0, 4: 1.0, 8: 1.0}
    assert (table.width_step("depthwise"), table.width_step("conv"), table.width_step()) == (16, 1, 16)


def test_the_step_of_most_kinds_is_that_of_the_machine() -> None:
    steps = {("conv", 1): 16, ("conv", 2): 8, ("linear", 0): 1, ("linear", 1): 64, ("depthwise", 0): 16}
    table = LatencyTable(SETTING, {}, steps, {})
    assert (table.width_step("conv"), table.width_step("linear"), table.width_step()) == (16, 64, 16)
    assert LatencyTable(SETTING, {}, {("linear", 0): 1}, {}).width_step() == 1


def test_a_step_needs_all_its_probes() -> None:
    some = profile.probe_layers(PROBES["depthwise"][0], 0)[1:]
    assert make_table(SETTING, dict.fromkeys(some, 1.0)).steps == {}


# -- ladders and what lies between ----------------------------------------------------------------------------------


def test_rungs_are_multiples_of_the_step_and_the_width_itself() -> None:
    assert widths_to_measure(100, 16, (0.25, 0.5, 1)) == (32, 48, 96, 100)
    assert widths_to_measure(10, 16, (0.25, 0.5, 1)) == (10,)
    assert widths_to_measure(8, 1, (0.25, 0.5, 1)) == (2, 4, 8)


def conv(*widths: int) -> LayerShape:
    shape = ((9, 9), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0,))
    return LayerShape("conv", 1, shape, widths)


def linear_table(**options: Any) -> tuple[LatencyTable, Placed]:
    """Of a convolution with 40 -> 80 channels whose time is 2 ms + in * out / 100."""
    placed = Placed(None, conv(1, 40, 80), (False, True, True))  # type: ignore[arg-type]
    table = LatencyTable(SETTING, {}, **({"steps": {}, "penalties": {}} | options))
    points = {layer: 2 + layer.widths[1] * layer.widths[2] / 100 for layer in table.grid(placed)}
    return LatencyTable(SETTING, points, table.steps, table.penalties), placed


def test_between_the_rungs_both_widths_count_linearly() -> None:
    table, placed = linear_table()
    for widths in ((1, 40, 80), (1, 17, 33), (1, 39, 11)):
        assert table.latency_ms(placed, widths) == pytest.approx(2 + widths[1] * widths[2] / 100)


def test_widths_are_rounded_up_to_the_step_and_pay_their_penalty() -> None:
    steps = {("conv", 1): 8, ("conv", 2): 16}
    table, placed = linear_table(steps=steps, penalties={("conv", 1): {1: 3.0, 2: 3.0}, ("conv", 2): {4: 1.5}})
    assert table.latency_ms(placed, (1, 24, 48)) == pytest.approx(2 + 24 * 48 / 100)
    assert table.latency_ms(placed, (1, 20, 48)) == pytest.approx(2 + 24 * 48 / 100), "4 divides 20: no penalty"
    assert table.latency_ms(placed, (1, 22, 48)) == pytest.approx(3 * (2 + 24 * 48 / 100))
    assert table.latency_ms(placed, (1, 22, 36)) == pytest.approx(4.5 * (2 + 24 * 48 / 100))


def test_the_cost_of_a_call_is_taken_off_and_copies_share_what_is_left() -> None:
    found = survey.ms_of([9.0, 9.0, 10.0, 10.0, 14.0], copies=4, call_ms=1.0)
    assert found["ms"] == 2.0, "the lower quartile is 9 ms: (9 - 1) / 4"
    assert found["copies"] == 4
    assert found["run"] == {"median_ms": 10.0, "p10_ms": 9.0, "p90_ms": pytest.approx(12.4), "rounds": 5}
    assert survey.ms_of([1.0], call_ms=3.0)["ms"] == 0.02, "noise makes no layer free"


def test_rounds_go_on_until_samples_agree() -> None:
    calm, runtime = FakeRuntime(), FakeRuntime(lambda layer: next(noise))
    samples = survey._samples([calm.prepare(conv(1, 8, 8), [], 1)], lambda: calm.now)
    assert len(samples[0]) == survey.ROUNDS
    noise = iter([11.0] * 8 + [10.0] + [12.0] * 1000)
    samples = survey._samples([runtime.prepare(conv(1, 8, 8), [], 1)], lambda: runtime.now)
    assert len(samples[0]) == survey.MOST


# -- measuring ------------------------------------------------------------------------------------------------------


def test_a_survey_of_no_model_learns_the_steps(tmp_path: Path) -> None:
    runtime = FakeRuntime(lambda layer: staircase_ms(layer, 32))
    table = survey.measure_layers((), runtime.job(tmp_path))
    assert set(table.steps.values()) == {32}
    assert set(table.steps) == {(kind, axis) for kind, axes in PROBES.items() for axis in axes}


def test_a_survey_of_a_model_finds_the_formula(tmp_path: Path, residual: Coupling) -> None:
    runtime = FakeRuntime()
    placed = layers_of(residual)
    table = survey.measure_layers(placed, runtime.job(tmp_path))
    assert all(table.covers(p) for p in placed)
    assert {kind for kind, _ in table.steps} == {"conv", "pointwise", "linear"}, "only the kinds of this model"
    assert set(table.steps.values()) == {8}
    for p in placed:
        widths = [max(1, w // 2) if free else w for w, free in zip(p.layer.widths, p.free, strict=True)]
        small = LayerShape(p.layer.kind, p.layer.count, p.layer.fixed, tuple(widths))
        assert table.latency_ms(p, widths) == pytest.approx(staircase_ms(small) - CALL_MS, rel=1e-3), small


def test_widths_run_in_turns(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    survey.measure_layers((), runtime.job(tmp_path))
    probes = profile.probe_layers(PROBES["depthwise"][0], 0)
    ran = [layer for layer in runtime.log if layer in probes]
    warm = ran.index(probes[-1]) + 6  # six runs warm each width up
    rounds = [layer for n, layer in enumerate(ran[warm:]) if ran[warm:][n - 1] != layer or n == 0]
    assert rounds[: len(probes)] == probes
    assert rounds[len(probes) : 2 * len(probes) - 1] == probes[-2::-1], "then backwards, from the last"


def test_layers_are_timed_together_only_as_far_as_they_fit() -> None:
    layers = [conv(1, 64, 64 - n) for n in range(7)]
    three = list(survey.split_to_fit(layers, most_bytes=3 * survey.stored_bytes(conv(1, 64, 64))))
    assert [len(together) for together in three] == [3, 3, 1]
    assert [layer for together in three for layer in together] == layers
    assert [len(together) for together in survey.split_to_fit([conv(1, 8, 8)] * 20)] == [survey.LAYERS_AT_ONCE, 4]


def test_each_part_is_released_before_the_next_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    monkeypatch.setattr(survey, "interleave", lambda *runs, **_: (alive.append(len(runs)), [[1.0]] * len(runs))[1])
    survey._measure([conv(1, 64, n + 1) for n in range(20)], FakeRuntime().job(tmp_path), {}, lambda stage: None)
    assert alive == [survey.LAYERS_AT_ONCE, 4]


def test_a_survey_goes_on_where_it_was_stopped(tmp_path: Path, residual: Coupling) -> None:
    placed = layers_of(residual)
    whole = survey.measure_layers(placed, FakeRuntime().job(tmp_path / "whole"))
    path = table_path(SETTING, tmp_path / "stopped")
    stopped = FakeRuntime(lambda layer: staircase_ms(layer) if layer.kind != "linear" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        survey.measure_layers(placed, stopped.job(tmp_path / "stopped"))
    path.write_text(path.read_text()[:-25])  # killed while writing a line
    before = read_table(SETTING, tmp_path / "stopped").points
    assert 0 < len(before) < len(whole.points)
    again = FakeRuntime()
    assert survey.measure_layers(placed, again.job(tmp_path / "stopped")).points == whole.points
    assert not set(again.log) & set(before), "what was measured is not measured again"
    silent = FakeRuntime()
    survey.measure_layers(placed, silent.job(tmp_path / "stopped"))
    assert silent.log == []


# -- on disk --------------------------------------------------------------------------------------------------------


def test_another_setting_is_another_table(tmp_path: Path) -> None:
    append_points(SETTING, [(conv(1, 8, 8), {"ms": 1.5})], tmp_path)
    assert read_table(SETTING, tmp_path).points == {conv(1, 8, 8): 1.5}
    for other in (("b", "fake", "1", 1), ("a machine", "x", "1", 1), ("a machine", "fake", "2", 1)):
        assert read_table(Setting(*other, "float32", 1), tmp_path).points == {}
    for threads, dtype, batch in ((2, "float32", 1), (1, "float16", 1), (1, "float32", 8)):
        assert read_table(Setting("a machine", "fake", "1", threads, dtype, batch), tmp_path).points == {}


def test_what_was_timed_in_another_way_is_another_table(tmp_path: Path) -> None:
    append_points(SETTING, [(conv(1, 8, 8), {"ms": 1.5})], tmp_path)
    assert read_table(dataclasses.replace(SETTING, measured_as=0), tmp_path).points == {}


def test_the_folder_for_caches_is_honoured(no_tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == no_tables / "slim-model" / "latency"
    assert table_path(SETTING).parent == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Path.home() in cache_folder().parents


def test_the_setting_of_this_machine() -> None:
    found = setting_of(RUNTIMES["onnxruntime"], threads=2)
    assert found == setting_of(RUNTIMES["onnxruntime"], threads=2)
    assert (found.runtime, found.threads, found.dtype, found.batch) == ("onnxruntime", 2, "float32", 1)
    assert found.version
    assert str(Path.home()) not in found.machine


def test_auto_takes_the_step_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_step("cpu") is None
    monkeypatch.setattr(latency_store, "vector_width_channels", lambda device: 4)
    assert width_step("auto", "cpu") == 4
    row = RUNTIMES["onnxruntime"]
    runtime = FakeRuntime(lambda layer: staircase_ms(layer, 32))
    survey.measure_layers((), runtime.job(cache_folder(), setting_of(row)))
    assert measured_step("cpu") == 32
    assert width_step("auto", "cpu") == 32
    assert width_step(6, "cpu") == 6
    assert width_step("auto", "cuda") == 4


# -- whole models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def latency(tmp_path: Path, residual: Coupling) -> ModelLatency:
    return model_latency(survey.measure_layers(layers_of(residual), FakeRuntime().job(tmp_path)), residual)


def test_a_model_takes_the_sum_of_its_layers(latency: ModelLatency, residual: Coupling) -> None:
    for keep in (all_of(residual), half_of(residual)):
        parts = latency.layers_ms(keep)
        assert latency.ms(keep) == sum(parts.values())
        assert len(parts) == 7
        assert latency.ms(keep) == model_latency(latency.table, residual).ms(keep)
    dense = sum(staircase_ms(p.layer) - CALL_MS for p in layers_of(residual))
    assert latency.ms(all_of(residual)) == pytest.approx(dense, rel=1e-3)
    assert latency.ms(half_of(residual)) < 0.5 * dense


def test_the_dense_model_tells_what_lies_between_the_layers(latency: ModelLatency, residual: Coupling) -> None:
    dense, half = all_of(residual), half_of(residual)
    anchored = latency.anchored(latency.ms(dense) + 3.0)
    assert (anchored.factor, anchored.rest_ms) == (1.0, pytest.approx(3.0))
    assert anchored.ms(half) == pytest.approx(latency.ms(half) + 3.0)
    faster = latency.anchored(0.8 * latency.ms(dense))
    assert (faster.factor, faster.rest_ms) == (pytest.approx(0.8), 0.0)


def test_a_measurement_corrects_the_prediction(latency: ModelLatency, residual: Coupling) -> None:
    dense, half = all_of(residual), half_of(residual)
    whole = latency.ms(dense) + 3.0
    anchored = latency.anchored(whole)
    for measured in (0.1, 0.9 * whole, 1.5 * whole):
        corrected = anchored.corrected([(whole, None), (measured, half)], 0.05)
        assert corrected.ms(half) == pytest.approx(measured)
        assert (corrected.ms(dense) == pytest.approx(whole)) == (measured < whole)
    assert anchored.corrected([(whole, None), (1.5 * whole, half)], 0.05).rest_ms == anchored.rest_ms


def test_measurements_on_both_sides_of_the_limit_count(latency: ModelLatency, residual: Coupling) -> None:
    """The dense model says little of narrow ones where the time is no line."""
    half, least = half_of(residual), half_of(residual)
    for group in residual.groups:
        least[group.channels[2:]] = False
    points = [(9.0, None), (3.0, half), (1.0, least), (4.0, None)]
    corrected = latency.corrected(points, 2.0)
    assert (corrected.ms(half), corrected.ms(least)) == (pytest.approx(3.0), pytest.approx(1.0))


def test_layers_without_a_table_cost_what_their_macs_do_elsewhere(tmp_path: Path, residual: Coupling) -> None:
    placed = layers_of(residual)
    table = survey.measure_layers(placed[:-1], FakeRuntime().job(tmp_path))
    latency = model_latency(table, residual)
    assert len(latency.placed) == len(placed) - 1
    parts = latency.layers_ms(all_of(residual))
    assert parts[placed[-1].node] == pytest.approx(24 * 5 * latency.ms_per_mac)
    assert len(parts) == len(placed)


def test_a_table_that_knows_no_layer_says_what_to_do(residual: Coupling) -> None:
    with pytest.raises(InputError, match="Run slim-model profile IN first"):
        model_latency(make_table(SETTING, {}), residual)


def test_a_batch_is_measured_at_its_size() -> None:
    coupling = couple(simplify(trace(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), (torch.zeros(2, 6),))))
    assert [p.layer.count for p in layers_of(coupling)] == [1, 1]
    assert [p.layer.count for p in layers_of(coupling, batch=8)] == [8, 8]
    assert [p.free for p in layers_of(coupling)] == [(False, True), (True, False)]


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """The formula as a runtime that can be named; a whole model takes 5 ms."""
    runtime = FakeRuntime(lambda it: staircase_ms(it) if isinstance(it, LayerShape) else 5.0)
    monkeypatch.setitem(RUNTIMES, "fake", runtime.row)
    on_its_clock = functools.partial(interleave, clock=lambda: runtime.now)
    for timed in (survey, learn):
        monkeypatch.setattr(timed, "interleave", lambda *runs, clock=None, **options: on_its_clock(*runs, **options))
    return runtime


def test_the_command_shows_layers_steps_and_the_whole(
    fake: FakeRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)), tmp_path / "net.pt")
    options = ["--runtime", "fake", "--input", "1x3x8x8", "--cache", str(tmp_path / "tables"), "--threads", "2"]
    assert cli.run(["profile", str(tmp_path / "net.pt"), *options]) == 0
    said = capsys.readouterr()
    text = " ".join(said.out.split())
    (path,) = (tmp_path / "tables").iterdir()
    setting = json.loads(path.read_text().splitlines()[0])["setting"]
    assert (setting["runtime"], setting["threads"]) == ("fake", 2)
    assert "timing layers: 2 of 2" in said.err
    assert "width step, conv, outputs: multiples of 8" in text
    assert "0 conv 1 3 16 0.128" in text, "3 inputs are 8, times 16 outputs, in microseconds"
    assert "whole model: 5.00 ms measured" in text
    fake.log.clear()
    assert cli.run(["profile", str(tmp_path / "net.pt"), *options]) == 0
    assert not any(isinstance(it, LayerShape) for it in fake.log), "a second run finds everything in the table"


def test_the_command_without_a_model_learns_steps(
    fake: FakeRuntime, no_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["profile", "--runtime", "fake"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("multiples of 8") == sum(map(len, PROBES.values()))
    assert "whole model" not in text
    assert list((no_tables / "slim-model" / "latency").iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--runtime", "tvm"], "unknown runtime 'tvm'"), (["--dtype", "int8"], "--dtype int8: it is one of float32, flo")],
)
def test_what_the_command_refuses(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
