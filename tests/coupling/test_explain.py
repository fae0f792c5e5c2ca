"""explain: what it says is measured, complete and readable, and the command answers in one go."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slim_model
import small_nets
from micronets import NETS
from micronets.compiled import coupling_of
from slim_model import cli
from slim_model.coupling.couple import couple, find_components
from slim_model.coupling.coupling import Coupling
from slim_model.coupling.explain import Explanation, Hold, explain
from slim_model.coupling.pin_reasons import ASKED, MEETS_FIXED
from slim_model.coupling.remedies import REMEDIES, remedy_for
from slim_model.errors import InputError
from slim_model.graph.graph import source_line
from slim_model.graph.trace import trace
from slim_model.labels.labelled import Tie
from slim_model.reporting import explanation as draw
from slim_model.simplifying.simplify import simplify
from small_nets import SHAPE, OnlyOutputs, Residual, images, trained

SOURCE = Path(slim_model.__file__).parent


def explained(model: nn.Module, *inputs: Tensor, keep: tuple[str, ...] = ()) -> Explanation:
    return explain(couple(simplify(trace(model.eval(), inputs)), keep=keep))


# -- reasons have remedies ------------------------------------------------------------------------------------------

_WHY = {"pin": 1, "agree": 1, "makes_alike": 1, "meet": 1, "_pin_all": 2, "_mixed": 3}
"""Functions that take a reason, and where."""


def reasons() -> Iterator[tuple[str, str]]:
    """(where, reason) of every reason that the source can give; those with details up to the bracket."""
    for path in sorted(SOURCE.rglob("*.py")):
        # Their reasons are why a file is refused, or an axis is fixed.
        if {"loading", "graph", "capture.py"} & set(path.parts):
            continue
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            for why in _said(node):
                where = f"{path.name}:{why.lineno}"
                if isinstance(why, ast.Constant) and why.value:
                    yield where, why.value
                elif isinstance(why, ast.JoinedStr):
                    yield where, str(why.values[0].value).removesuffix(" (")  # type: ignore[attr-defined]
                elif isinstance(why, ast.Name) and why.id != "why":
                    yield where, constants[why.id]


def _said(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        said = [k.value for k in node.keywords if k.arg == "why"]
        return [*said, *node.args[_WHY[name] : _WHY[name] + 1]] if name in _WHY else said
    if isinstance(node, ast.FunctionDef):
        names = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        defaults = [*node.args.defaults, *node.args.kw_defaults]
        return [d for d in defaults if d is not None] if "why" in names else []
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("why", "pinned[failed.node]"):
        return [node.value]
    return []


def test_every_reason_has_a_remedy() -> None:
    given = {*reasons(), ("couple.py", ASKED), ("couple.py", MEETS_FIXED)}
    assert len({why for _, why in given}) >= 40
    assert not {(where, why) for where, why in given if why not in REMEDIES}
    assert not REMEDIES.keys() - {why for _, why in given}, "a reason that nothing gives any more"


def test_a_reason_with_details_has_the_remedy_of_its_kind() -> None:
    assert remedy_for("removing channels here could not be shown to be exact (its values differ)").startswith("Please")


# -- laws over every micro-net --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_what_would_be_free_is_what_coupling_without_the_pin_gives(name: str) -> None:
    coupling = coupling_of(name)
    found = explain(coupling)
    for hold in found.holds:
        assert hold.remedy
        assert sum(hold.frees.values()) == freed_without(coupling, hold), hold
        assert bool(hold.beside) == (hold.frees != hold.holds)


def freed_without(coupling: Coupling, hold: Hold) -> int:
    """Labels that layers make and that are fixed only while this reason is there, by coupling again."""
    labelled = coupling.labelled
    pins = [pin for pin in labelled.pins if not _is(hold, pin.node, pin.why)]
    ties = labelled.ties
    if hold.why == MEETS_FIXED:
        ties = [Tie(a[m], b[m], n) for a, b, n in ties for m in [(a != 0) == (b != 0) if _is(hold, n) else a >= 0]]
    without = dataclasses.replace(labelled, pins=pins, ties=ties)
    component = find_components(without, [pin.labels.numpy() for pin in pins])
    made = np.unique(np.concatenate([axis.numpy() for axis, _ in labelled.made]))
    return int(((coupling.component[made] == 0) & (component[made] != 0)).sum())


def _is(hold: Hold, node: Any, why: str = MEETS_FIXED) -> bool:
    op = "" if node.op == "output" else str(node.target)
    where = "" if node.op == "output" else source_line(node)
    return (hold.op, hold.where, hold.why) == (op, where, why)


@pytest.mark.parametrize("name", NETS)
def test_it_counts_what_coupling_counts(name: str) -> None:
    coupling = coupling_of(name)
    found = explain(coupling)
    fixed: Counter[str] = Counter()
    for layer in found.layers:
        fixed[layer.name] += sum(n for group, n in layer.parts if group < 0)
    pinned: Counter[str] = Counter()
    for pin in coupling.pinned:
        pinned[pin.name] += pin.channels
    assert +fixed == pinned
    assert (found.free > 0) == (coupling.free > 0)
    held = {layer for hold in found.holds for layer in hold.holds}
    assert held == {p.name for p in coupling.pinned}
    for pin in coupling.pinned:  # the report names the nearest of the reasons that explain lists
        op = "" if pin.is_output else pin.op
        holds = [h for h in found.holds if (h.op, h.where, h.why) == (op, pin.where, pin.why)]
        assert sum(hold.holds.get(pin.name, 0) for hold in holds) >= pin.channels, pin


class TwoReasons(nn.Module):
    """Of 5 channels 2 are an output, and over the other 3 a softmax runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer(x)
        return x[:, :2], x[:, 2:].softmax(1).sum(1)


def test_channels_of_one_layer_are_pinned_each_for_its_own_reason() -> None:
    """The report gave all of them the reason of the first, and so took the softmax for an output."""
    coupling = couple(simplify(trace(TwoReasons().eval(), (torch.randn(2, 3),))))
    pins = {(pin.op, pin.channels, pin.is_output) for pin in coupling.pinned}
    assert pins == {("output", 2, True), ("aten.softmax.int", 3, False)}
    assert {hold.op: hold.holds for hold in explain(coupling).holds} == {
        "": {"layer": 2},
        "aten.softmax.int": {"layer": 3},
    }


@pytest.mark.parametrize("name", NETS)
def test_every_rendering_is_well_formed(name: str) -> None:
    found = explain(coupling_of(name))
    said = draw.text(found)
    for hold in found.holds:
        assert hold.why in said
        assert hold.remedy in said
    for group in found.groups:
        assert f"{group.name}: " in said
    read = json.loads(draw.json_text(found))
    assert read["schema"] == "slim-model-explain/1"
    assert len(read["holds"]) == len(found.holds)
    picture = ET.fromstring(draw.svg(found))
    bars = [r for r in picture.iter("{http://www.w3.org/2000/svg}rect") if r.find("{*}title") is not None]
    assert len(bars) == sum(len(layer.parts) for layer in found.layers)
    lines = draw.dot(found).splitlines()
    assert lines[0].endswith("{")
    assert lines[-1] == "}"
    assert sum(" [label=" in line for line in lines) == len(found.layers)


# -- what it says of known nets -------------------------------------------------------------------------------------


def because(name: str) -> str:
    return "\n".join(text for group in explain(coupling_of(name)).groups for text in group.because)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("attention", r"2 heads share each channel: a view at \w+\.py:\d+ in \w+"),
        ("lstm", r"4 gates share each channel: lstm at \w+\.py:\d+ in forward: return s\.head"),
        ("gru", r"3 gates share each channel: gru"),
        ("residual_add", r"tied by an addition at \w+\.py:\d+"),
    ],
)
def test_why_channels_go_together(name: str, says: str) -> None:
    assert re.search(says, because(name)), because(name)


class Mixed(nn.Module):
    """Grouped (8 groups of 2), a softmax over channels, and an image added to channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(16, 12, 1)
        self.colour = nn.Conv2d(12, 3, 1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(F.relu(self.stem(x)))
        y = self.gate(y).softmax(1)
        y = self.colour(y) + x
        return self.fc(y.mean((2, 3)))


@functools.cache
def mixed() -> Explanation:
    return explained(trained(Mixed()), images())


def hold(found: Explanation, layer: str) -> Hold:
    (only,) = [hold for hold in found.holds if layer in hold.holds]
    return only


def test_what_holds_a_layer_and_what_would_free_it() -> None:
    softmax, added, output = (hold(mixed(), layer) for layer in ("gate", "colour", "fc"))
    assert softmax.op == "aten.softmax.int"
    assert "y = self.gate(y).softmax(1)" in softmax.where
    assert softmax.holds == softmax.frees == {"gate": 12}
    assert added.op == "aten.add.Tensor"
    assert added.holds == added.frees == {"colour": 3}
    assert output.is_output
    assert output.holds == {"fc": 5}
    assert (mixed().free, mixed().total) == (32, 52)


def test_whole_groups() -> None:
    text = "\n".join(mixed().groups[0].because)
    assert "whole groups of 2 go: a grouped convolution at test_explain.py" in text


def test_a_layer_is_found_by_glob_or_beginning() -> None:
    residual = explained(trained(Residual()), images())
    block = residual.about("block1")
    assert {layer.name for layer in block.layers} == {"block1.conv1", "block1.conv2"}
    assert {group.name for group in block.groups} == {"stem", "block1.conv1"}
    assert not block.holds
    assert (block.free, block.total) == (32, 32)
    assert [layer.name for layer in residual.about("*.conv1").layers] == ["block1.conv1", "block2.conv1"]
    assert mixed().about("gate").holds == (hold(mixed(), "gate"),)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"--layer 'layer9' matches no layer.*stem"):
        mixed().about("layer9")


def test_keep_is_a_reason() -> None:
    kept = hold(explained(trained(Residual()), images(), keep=("block1.conv1",)), "block1.conv1")
    assert kept.why == ASKED
    assert kept.frees == {"block1.conv1": 16}


def test_two_reasons_for_the_same_channels_name_each_other() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = y.softmax(1) + y.cumsum(1)
            return self.fc(y.mean((2, 3)))

    found = explained(Twice(), images())
    softmax, cumsum = (next(h for h in found.holds if name in h.op) for name in ("softmax", "cumsum"))
    assert softmax.frees == cumsum.frees == {}
    assert len(softmax.beside) == len(cumsum.beside) == 1
    assert softmax.beside[0].startswith("aten.cumsum.default at test_explain.py:")
    said = draw.text(found)
    assert "without it alone nothing could go: also held by aten.cumsum.default at test_explain.py:" in said


def test_nothing_can_go() -> None:
    found = explained(trained(OnlyOutputs()), images())
    assert found.free == 0
    assert not found.groups
    ET.fromstring(draw.svg(found))


# -- the command ----------------------------------------------------------------------------------------------------

ARCH = ("--arch", f"{small_nets.__file__}:Residual", "--input", SHAPE)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(trained(Residual()).state_dict(), tmp_path / "in.pt")
    return tmp_path / "in.pt"


def run(*arguments: Any) -> int:
    return cli.run(["explain", *map(str, arguments)])


def test_the_command(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: tmp_path / f"F.{name}" for name in ("json", "dot", "svg")}
    assert run(weights, *ARCH, *(word for name, place in places.items() for word in (f"--{name}", place))) == 0
    said = capsys.readouterr().out
    found = explained(trained(Residual()), images())
    read = json.loads(places["json"].read_text())
    assert said == draw.text(found) + "\n"
    assert (
        (read["free"], read["output_channels"]) == (found.free, found.total) == (3 * 16 + 3 * 24, 3 * 16 + 3 * 24 + 5)
    )
    assert read["groups"] == json.loads(json.dumps([dataclasses.asdict(group) for group in found.groups]))
    assert places["dot"].read_text() == draw.dot(found)
    assert places["svg"].read_text() == draw.svg(found)


def test_one_layer(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(weights, *ARCH, "--layer", "fc") == 0
    said = capsys.readouterr().out
    assert "kept: 5 channels of fc, because it is an output of the model" in said
    assert "block1" not in said.replace("block1.conv2", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*ARCH, "--layer", "layer9"), "--layer 'layer9' matches no layer"),
        ((*ARCH, "--keep", "layer9"), "--keep 'layer9' matches no layer"),
        ((), "--arch"),
        ((*ARCH, "--json", "no/such/F.json"), "does not exist"),
        ((*ARCH, "--colour", "red"), "--colour"),
    ],
)
def test_bad_input(options: tuple[str, ...], says: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(weights, *options) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1
    assert says in said[0]


def test_an_output_may_not_replace_the_input(weights: Path) -> None:
    before = weights.read_bytes()
    assert run(weights, *ARCH, "--json", weights) == 2
    assert weights.read_bytes() == before


def test_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "IN" in capsys.readouterr().err


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "--layer" in capsys.readouterr().out
    assert cli.run(["--help"]) == 0
    assert "explain" in capsys.readouterr().out
