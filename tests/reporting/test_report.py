"""The report: one JSON with all that happened, one screen for people."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import slim_model
from slim_model.data.accuracy import Step
from slim_model.measuring.timing import Comparison, Latency
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.recipe_files.versions import REPORT_SCHEMA
from slim_model.reporting.report import Report, _timed, make_report
from slim_model.reporting.report_schema import report_schema
from slim_model.reporting.terminal import show
from small_nets import Residual, images, trained

RECIPE = Recipe.of(ratio=0.5, multiple_of=1)


class Mixed(nn.Module):
    """Has an operator without a rule, a layer with an output of its own, and channels that are free."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 6, 3)
        self.body, self.head = nn.Conv2d(8, 12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        extra = torch.linalg.inv(self.odd(x).mean((2, 3))[:, :, None] + torch.eye(6))
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3))), extra


@functools.cache
def compiled(net: type[nn.Module] = Residual) -> tuple[nn.Module, Compiled]:
    model = trained(net())
    return model, compile_model(model, (images(),), RECIPE)


def a_comparison(low: float = 1.4, high: float = 1.6) -> Comparison:
    dense = Latency("onnxruntime", 3.0, 2.9, 3.3, 1, 1, "cpu", 60)
    slim = Latency("onnxruntime", 2.0, 1.9, 2.2, 1, 1, "cpu", 60)
    return Comparison("onnxruntime", dense, slim, (low + high) / 2, low, high)


def report_of(net: type[nn.Module] = Residual, **more: Any) -> Report:
    return make_report(compiled(net)[1], RECIPE, **{"module_is_own": True, "onnx_error": 3e-7} | more)


def screen(report: Report, width: int = 80) -> str:
    text = io.StringIO()
    show(report, Console(file=text, width=width))
    return text.getvalue()


def test_each_step_has_its_accuracy_and_latency() -> None:
    """int8 takes another file; training and recovery leave that of removal as fast as it was."""
    steps = tuple(Step(name, 1.0, accuracy) for name, accuracy in (("dense", 0.9), ("removal", 0.5), ("affine", 0.8)))
    made = dataclasses.replace(compiled()[1], steps=steps)
    int8: Any = SimpleNamespace(written=True, form="u8s8", against_dense=a_comparison(), tail=())
    int8.against_dense = dataclasses.replace(
        a_comparison(), slim=dataclasses.replace(a_comparison().slim, median_ms=0.7)
    )
    times = [step.latency_ms for step in _timed((*steps, Step("int8", 1.0, 0.79)), [a_comparison()], int8)]
    assert times == [3.0, 2.0, 2.0, 0.7]
    assert [step.latency_ms for step in _timed(steps, [], None)] == [None] * 3
    report = make_report(made, RECIPE, module_is_own=True, latency=[a_comparison()])
    assert [step["latency_ms"] for step in report.steps] == [3.0, 2.0, 2.0]


# -- for machines ---------------------------------------------------------------------------------------------------


def test_the_json_has_what_is_promised() -> None:
    report = json.loads(report_of(latency=[a_comparison()], warnings=["a note"], files=(4000, 1000)).as_json())
    assert report["schema"] == REPORT_SCHEMA
    jsonschema.validate(report, report_schema())
    for side in ("dense", "slim"):
        assert report[side].keys() >= {"params", "macs", "bytes"}
    for group in report["groups"]:
        assert group.keys() >= {"name", "before", "after", "kept", "slices"}
        for part in group["slices"]:
            assert part.keys() >= {"parameter", "axis", "kept"}
    for pin in report["pinned"]:
        assert pin.keys() >= {"channels", "op", "where", "why"}
    assert report["proof"]["masked_max_rel_error"] <= 1e-4
    assert report["proof"]["onnx_max_rel_error"] == 3e-7
    for row in report["latency"]:
        for side in ("dense", "slim"):
            assert row[side].keys() >= {"median_ms", "p10_ms", "p90_ms", "threads", "batch"}
        assert row.keys() >= {"runtime", "speedup"}
    assert report["environment"].keys() >= {"slim_model", "torch", "onnx", "onnxruntime", "python", "cpu"}
    assert report["environment"]["slim_model"] == slim_model.__version__
    assert "a note" in report["warnings"]
    assert report["recipe"]["budget"]["ratio"] == 0.5
    assert (report["dense"]["bytes"], report["slim"]["bytes"]) == (4000, 1000)


def test_parameters_and_multiply_adds_are_counted_by_hand() -> None:
    """Residual: stem 3x3 from 3 to 16, blocks 16-16-16 and 16-24-24 with a 1x1 shortcut, 24 to 5; 16x16 positions."""

    def count(a: int, b: int) -> tuple[int, int]:
        """Channels of the stem and of block 2's output and inside."""
        convs = 9 * (3 * a + 2 * a * a + a * b + b * b) + a * b
        norms = 2 * (3 * a + 2 * b)
        return convs + norms + b + (5 * b + 5), 256 * convs + 5 * b

    report = report_of()
    assert (report.dense["params"], report.dense["macs"]) == count(16, 24)
    assert (report.slim["params"], report.slim["macs"]) == count(8, 12)
    assert report.dense["params"] == sum(p.numel() for p in Residual().parameters())
    model, result = compiled()
    module, *_ = make_small_module(model, result.small)
    assert report.slim["params"] == sum(p.numel() for p in module.parameters())


def test_the_slices_say_how_to_cut_the_dense_model() -> None:
    """Cutting each parameter as the report says gives exactly the small model's weights."""
    model, result = compiled()
    state = dict(model.state_dict())
    kept: dict[tuple[str, int], set[int]] = {}
    for group in report_of().groups:
        assert group["after"] == len(group["kept"])
        assert all(0 <= channel < group["before"] for channel in group["kept"])
        for part in group["slices"]:
            kept.setdefault((part["parameter"], part["axis"]), set()).update(part["kept"])
    for (name, axis), positions in kept.items():
        state[name] = state[name].index_select(axis, torch.tensor(sorted(positions)))
    module, own, _ = make_small_module(model, result.small)
    assert own
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_what_is_pinned_says_where_and_why() -> None:
    report = report_of(Mixed)
    pins = {pin["name"]: pin for pin in report.pinned}
    assert pins["head"]["is_output"]
    assert pins["head"]["channels"] == 5
    assert "aten.linalg_inv" in pins["odd"]["op"] or "aten.linalg_inv" in str(report.unknown_ops)
    assert pins["odd"]["where"].startswith("test_report.py:")
    assert 0 < report.free_share < 1


def test_a_criterion_given_as_a_function_is_named() -> None:
    def loudest(slices: Any) -> Tensor:
        return slices.makes[0].abs().amax(1)

    recipe = RECIPE.but(criterion=loudest)
    report = make_report(compile_model(trained(Residual()), (images(),), recipe), recipe, module_is_own=True)
    assert json.loads(report.as_json())["recipe"]["ranking"]["criterion"] == "loudest"


@pytest.mark.parametrize("own", [True, False])
def test_warnings(own: bool) -> None:
    slower = a_comparison(0.7, 0.9)
    notes = report_of(module_is_own=own, latency=[slower, a_comparison()]).warnings
    assert sum("slower" in note for note in notes) == 1
    assert any("traced graph" in note for note in notes) != own


# -- for people -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [Residual, Mixed])
@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_screen_fits(net: type[nn.Module], width: int) -> None:
    text = screen(report_of(net, latency=[a_comparison()], files=(4000, 1000)), width)
    assert max(map(len, text.splitlines())) <= width
    for group in report_of(net).groups:
        assert re.search(rf"{group['before']} -> {group['after']}\b", text)


@pytest.mark.parametrize("net", [Residual, Mixed])
def test_names_of_layers_are_never_cut(net: type[nn.Module]) -> None:
    text = screen(report_of(net))
    for group in report_of(net).groups:
        assert re.search(rf"^{re.escape(group['name'])}\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.4, 1.6, "1.50x faster"), (0.7, 0.9, "0.80x slower"), (0.9, 1.2, "no difference shown")],
)
def test_the_verdict_on_speed_looks_at_the_interval(low: float, high: float, verdict: str) -> None:
    text = screen(report_of(latency=[a_comparison(low, high)]))
    assert verdict in text
    assert "3.00 ms" in text
    assert "2.00 ms" in text


def test_long_lists_are_cut_and_say_so() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 1) for i in range(20)), nn.Conv2d(4, 5, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    report = make_report(compile_model(trained(Deep()), (images(),), RECIPE), RECIPE, module_is_own=True)
    assert "... 8 more (--report)" in screen(report)
    assert len(report.groups) == 20


def test_what_users_wrote_is_not_read_as_markup() -> None:
    """Rich would take [bold] for a style."""
    report = report_of(Mixed, warnings=["see x[bold]"])
    text = screen(report, 200)
    assert "see x[bold]" in text
    assert "[:, :, None]" in text or "linalg" not in text


def test_a_long_name_leaves_room_for_the_line_beside_it() -> None:
    """Converters make names of 60 letters; those that people write are whole."""
    report = report_of()
    long, common = (
        "conv_stage0_block0_proj_shortcut/BiasAdd_weights_fused_bn",
        "encoder.layers.encoder_layer_0.self_attention",
    )
    report.groups[0]["name"], report.groups[1]["name"] = long, common
    said = screen(report)
    assert "conv_stage0_block0_proj_shortcut/Bia..._fused_bn" in said
    assert common in said
    assert "small_nets." in said
