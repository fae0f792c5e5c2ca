"""Factored layers in a latency table: both forms are timed, and the faster one is what the layer takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_latency_table import CALL_MS, FakeRuntime, staircase_ms
from torch import nn

from slim_model.cost import measure_layers as survey
from slim_model.cost.break_even import ranks_among
from slim_model.cost.counted import CostModel, by_macs
from slim_model.cost.latency_model import ModelLatency, model_latency
from slim_model.cost.layer_models import layers_of
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.coupling.rank_groups import find_rank_groups
from slim_model.factoring.factor import Factoring, factor
from slim_model.factoring.ranks import settle
from slim_model.ops import LayerShape
from slim_model.proof.capture import capture
from small_nets import images, trained

DEAR = 3.0
"""Times that a pointwise convolution takes on the machine below."""


def ms_with_dear_points(layer: LayerShape) -> float:
    ms = staircase_ms(layer, 1) - CALL_MS if layer.kind != "nothing" else 0.0
    taps = 9 if layer.kind == "conv" else DEAR if layer.kind == "pointwise" else 1
    return CALL_MS + 100 * ms * taps


@pytest.fixture(autouse=True)
def _layers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "module_of_layer", lambda layer, dtype: layer)
    monkeypatch.setattr(survey, "example_inputs", lambda layer, dtype: [])


@pytest.fixture(scope="module")
def factoring() -> Factoring:
    """A layer that reads 16 channels in 3 x 3 places and gives 24."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
    model = trained(nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)))
    return factor(capture(model, (images(),)), ("channel",), keep=("0",))


def timed(coupling: Coupling, cache: Path, cost: Callable[[LayerShape], float]) -> ModelLatency:
    return model_latency(survey.measure_layers(layers_of(coupling), FakeRuntime(cost).job(cache)), coupling)


def with_ranks(coupling: Coupling, ranks: int) -> np.ndarray:
    keep = coupling.keep_all()
    (group,) = find_rank_groups(coupling)
    keep[coupling.groups[group].channels[ranks:]] = False
    return keep


def test_each_factor_and_the_one_layer_are_timed(factoring: Factoring) -> None:
    coupling = couple(factoring.graph)
    placed = {(p.layer.kind, p.layer.widths, p.free, p.whole) for p in layers_of(coupling)}
    assert placed == {
        ("conv", (1, 3, 16), (False, False, True), False),
        ("conv", (1, 16, 24), (False, True, True), False),
        ("pointwise", (1, 24, 24), (False, True, True), False),
        ("conv", (1, 16, 24), (False, True, True), True),
        ("linear", (24, 5), (True, False), False),
    }
    start = couple(factoring.start)
    assert {p.layer for p in layers_of(start)} == {p.layer for p in layers_of(coupling) if p.layer.kind != "pointwise"}


def test_the_faster_form_counts(factoring: Factoring, tmp_path: Path) -> None:
    """By multiply-adds 144 r + 24 r < 3456 holds for r up to 20; in time 144 r + 3 x 24 r does for r up to 15."""
    coupling = couple(factoring.graph)
    latency = timed(coupling, tmp_path, ms_with_dear_points)
    start = timed(couple(factoring.start), tmp_path, ms_with_dear_points)
    dense = latency.ms()
    assert dense == pytest.approx(start.ms(), rel=1e-3)
    for ranks in (16, 18, 20):
        product = CostModel(coupling).products(with_ranks(coupling, ranks))[0]
        assert by_macs(product)
        assert not latency.pays(product)
        assert latency.ms(with_ranks(coupling, ranks)) == pytest.approx(dense, rel=1e-3)
    for ranks in (15, 9, 3):
        saved = (3456 - 144 * ranks - DEAR * 24 * ranks) * 100 / 1e3
        assert latency.ms(with_ranks(coupling, ranks)) == pytest.approx(dense - saved, rel=0.01)
    found = ranks_among(coupling, latency.pays)
    assert found is not None
    assert [*found.break_even.values()] == [16]
    assert latency.counted().ms(with_ranks(coupling, 18)) > dense  # the limit is on multiply-adds


def test_a_pair_that_is_slower_is_multiplied_back(factoring: Factoring, tmp_path: Path) -> None:
    coupling = couple(factoring.graph)
    latency = timed(coupling, tmp_path, ms_with_dear_points)
    for pays, left in ((by_macs, ["2"]), (latency.pays, [])):
        settled, _, _ = settle(coupling, with_ranks(coupling, 18), factoring, couple, pays=pays)
        assert [layer.path for layer in settled.graph.factored] == left
