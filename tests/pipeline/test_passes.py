"""Passes: what is removed, as a list of values; and what a run takes from its recipe once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slim_model.budget.ratio import ratios_of
from slim_model.cost import latency_store
from slim_model.coupling.attention_heads import couple_attention
from slim_model.errors import InputError
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.passes import passes_of
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from slim_model.reporting.report import make_report
from small_nets import Residual, images, trained


def told(**options: Any) -> list[tuple[str, int, float]]:
    """(what attention loses, the round, the ratio) of each pass."""
    return [(one.loses, one.round, round(one.goal.ratio, 4)) for one in passes_of(Recipe.of(**options), 1)]


def test_one_pass_is_the_rule() -> None:
    assert told(ratio=0.5) == [("width", 1, 0.5)]
    assert told(ratio=0.5, attention="heads") == [("heads", 1, 0.5)]


def test_heads_go_first_and_widths_follow() -> None:
    """1 - sqrt(0.5) = 0.2929 of the heads; what the widths lose of the rest is counted in the dense model."""
    assert told(ratio=0.5, attention="both") == [("heads", 0, 0.2929), ("width", 1, 0.5)]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_where_there_are_no_heads_widths_go(scope: str) -> None:
    """One ranking over no groups at all was a fault."""
    recipe = Recipe.of(0.5, attention="both", scope=scope)
    compiled = compile_model(trained(Residual()), (images(),), recipe)
    assert [one.loses for one in compiled.passes] == ["width"]
    assert "no attention heads were found: widths were removed" in compiled.warnings


DATA = [(images(20), torch.zeros(20, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("alone", "partner"),
    [
        ({"lr": 0.01}, {"finetune": 1}),
        ({"optimizer": "sgd", "hints": 10.0}, {"finetune": 1}),
        ({"alpha": 0.9, "temperature": 7.0, "dropout": 0.5}, {"finetune": 1}),
        ({"distill": False, "precision": "fp32"}, {"finetune": 1}),
        ({"augment": "flip"}, {"finetune": 1}),
        ({"augment": "flip"}, {"recover": "network"}),
        ({"int8_form": "u8u8", "int8_anyway": True}, {"int8": True}),
        ({"scan": Path("scan.jsonl")}, {"allocate": "sensitivity"}),
    ],
)
def test_options_that_do_nothing_alone_are_named(alone: dict[str, Any], partner: dict[str, Any]) -> None:
    idle = Recipe.of(0.5, data=DATA, **alone).idle()
    assert idle.keys() == alone.keys()
    assert all(f"--{name}" in needed for name in partner for needed in idle.values())
    assert not Recipe.of(0.5, data=DATA, **alone, **partner).idle()


@pytest.mark.parametrize("trains", [{"finetune": 1}, {"recover": "network"}])
def test_pictures_are_asked_for_before_any_work(trains: dict[str, Any]) -> None:
    """A net on rows of numbers was once ranked, cut and proven before its augmentation was refused."""
    said: list[str] = []
    data = [(torch.rand(20, 12), torch.zeros(20, dtype=torch.int64))]
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="augment 'flip' is for pictures"):
        compile_model(
            net, (torch.rand(2, 12),), Recipe.of(0.5, data=data, augment="flip", **trains), progress=said.append
        )
    assert not any("ranking" in stage for stage in said)


def test_what_does_nothing_is_in_the_notes() -> None:
    compiled = compile_model(trained(Residual()), (images(),), Recipe.of(0.5, lr=0.01))
    assert "lr does nothing without --finetune" in compiled.warnings


def test_rounds_are_passes() -> None:
    """A share of a price is that of what the round before left: 1 - sqrt(0.25) = 0.5."""
    assert told(ratio=0.75, iterations=2) == [("width", 1, 0.75), ("width", 2, 0.75)]
    assert told(ratio=0.75, iterations=2, of="macs") == [("width", 1, 0.5), ("width", 2, 0.5)]


def test_a_geometric_share_is_left_after_each_round() -> None:
    graph = capture(trained(Residual()), (images(),))
    coupling = couple_attention(graph)
    goals = [one.goal for one in passes_of(Recipe.of(0.75, iterations=2), 1)]
    assert ratios_of(goals[0], coupling, graph) == pytest.approx([0.5] * len(coupling.groups))


@pytest.mark.parametrize("given", [{"scope": "global"}, {"allocate": "global"}])
def test_both_ways_to_ask_for_one_ranking_are_one(given: dict[str, str]) -> None:
    """``--allocate global`` with a ratio of channels was once taken for ``uniform``."""
    model = trained(Residual())
    once, uniform = (
        compile_model(model, (images(),), Recipe.of(0.5, multiple_of=1, **options)) for options in (given, {})
    )
    assert (
        once.plan.widths == compile_model(model, (images(),), Recipe.of(0.5, multiple_of=1, scope="global")).plan.widths
    )
    assert once.plan.widths != uniform.plan.widths


def test_the_block_that_was_used_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that was measured in between may name another step."""
    monkeypatch.setattr(latency_store, "vector_width_channels", lambda device: 4)
    recipe = Recipe.of(0.5)
    compiled = compile_model(trained(Residual()), (images(),), recipe)
    monkeypatch.setattr(latency_store, "vector_width_channels", lambda device: 16)
    assert make_report(compiled, recipe, module_is_own=True).recipe["budget"]["multiple_of"] == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"augment": "cutmix"}, "add --alpha 1"),
        ({"distill": False, "labels": False}, "has no labels: fine-tuning then needs the dense model"),
        ({"samples_given": 6}, "fine-tuning needs at least 10"),
    ],
)
def test_training_that_cannot_be_is_refused_before_anything_is_removed(options: dict[str, Any], says: str) -> None:
    count, labels = options.pop("samples_given", 40), options.pop("labels", True)
    x = images(count)
    data = (x, torch.zeros(count).long()) if labels else x
    stages: list[str] = []
    with pytest.raises(InputError, match=says):
        compile_model(
            trained(Residual()), (x[:2],), Recipe.of(data=data, finetune=1, **options), progress=stages.append
        )
    assert stages == ["tracing the model"]
