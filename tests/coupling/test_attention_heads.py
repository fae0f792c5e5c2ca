"""--attention: whole heads, the width inside the heads, or first the one and then the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from micronets import NETS, normal
from micronets.compiled import BATCH, compile_graph, graph_of, model_of
from micronets.oracle import assert_same, masked_module, outputs_of
from slim_model.api import slim
from slim_model.coupling.attention_heads import find_heads
from slim_model.coupling.couple import couple
from slim_model.errors import InputError
from slim_model.export.torch_files import restore, save
from slim_model.graph.as_module import graph_module
from slim_model.labels.values import Replay
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.capture import capture
from slim_model.proof.own_module import make_small_module
from slim_model.proof.structure import check_structure
from slim_model.recipe import Recipe
from slim_model.reporting.report import make_report
from small_nets import Residual, images, trained

HEADS = {
    **dict.fromkeys(("attention", "attention_by_hand", "attention_masked", "attention_causal", "attention_einsum"), 2),
    **dict.fromkeys(("attention_across", "attention_fused", "attention_fused_by_hand", "attention_split_in_three"), 2),
    **dict.fromkeys(("multihead_attention", "multihead_attention_weights", "multihead_attention_across"), 3),
    **dict.fromkeys(("rotary", "rotary_computed", "rotary_interleaved", "attention_with_normed_keys"), 2),
    **dict.fromkeys(("grouped_query_interleaved", "grouped_query_expanded", "grouped_query_flag"), 2),
    **dict.fromkeys(("attention_with_bias", "relative_position_bias", "decoder_layer", "encoder_layer"), 2),
    **dict.fromkeys(("attention_into_a_product_of_rows",), 2),
    **{"attention_divided": 4, "attention_over_channels": 4, "talking_heads": 4, "many_narrow_heads": 8},
}
"""Nets with attention, and how many heads may go: of grouped queries, heads of keys."""

_ZEROED = [name for name in HEADS if NETS[name].zeroed and name != "multihead_attention_weights"]
"""Nets that the oracle covers: a mean over all heads is none over those that are kept."""


def removed(name: str, attention: Any, ratio: float = 0.5, seed: int = 0) -> Compiled:
    recipe = Recipe.of(ratio, "random", seed=seed, multiple_of=1, attention=attention)
    return compile_graph(model_of(name), graph_of(name), recipe)


# -- where heads are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_heads_are_found_in_attention_alone(name: str) -> None:
    assert bool(find_heads(graph_of(name)).heads) == (name in HEADS)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_one_channel(name: str) -> None:
    graph = graph_of(name)
    heads = find_heads(graph)
    coupling = couple(graph, apart=heads.heads)
    whole = [group.width for group, is_whole in zip(coupling.groups, heads.groups(coupling), strict=True) if is_whole]
    assert set(whole) == {HEADS[name]}
    inside = couple(graph, apart=heads.width)
    assert not any(heads.groups(inside))


# -- what is removed is exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("ratio", "seed"), [(0.5, 0), (0.3, 1), (0.7, 2)])
def test_slim_without_heads_equals_masked(name: str, ratio: float, seed: int) -> None:
    result = removed(name, "heads", ratio, seed)
    assert result.proof.masked_max_rel_error <= 1e-4
    module, *_ = make_small_module(model_of(name), result.small)
    if name in _ZEROED:
        oracle = masked_module(model_of(name), NETS[name], result)
        inputs = NETS[name].inputs(BATCH)
        assert_same(outputs_of(oracle, inputs), outputs_of(module, inputs), name)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("ratio", "seed"), [(0.5, 0), (0.7, 1)])
def test_slim_without_heads_and_widths_equals_masked(name: str, ratio: float, seed: int) -> None:
    """The first pass is masked in the dense module, the second in what the first one leaves."""
    result = removed(name, "both", ratio, seed)
    inputs, first = NETS[name].inputs(BATCH), result.passes[0]
    assert first is not None
    assert result.proof.masked_max_rel_error <= 2e-4
    assert result.proof.ties == first.proof.ties + check_structure(result.small, replay_of(result))
    if name in _ZEROED:
        half = masked_module(model_of(name), NETS[name], first)
        assert_same(outputs_of(half, inputs), first.small.run(inputs), "heads")
        whole = masked_module(graph_module(first.small), NETS[name], result)
        assert_same(
            outputs_of(whole, inputs), outputs_of(make_small_module(model_of(name), result.small)[0], inputs), "widths"
        )


def replay_of(result: Compiled) -> Replay:
    return result.coupling.born(result.plan.keep[result.coupling.component])


# -- how much goes --------------------------------------------------------------------------------------------------


def test_heads_and_widths_share_the_ratio() -> None:
    """Of 4 heads 4 * sqrt(0.5) = 2.8 stay, so 3; half of all is 2/3 of what is left of widths: 2.7 of 4, so 3."""
    result = removed("attention_divided", "both")
    assert len(result.passes) == 2
    assert [
        w for g, w in zip(result.passes[0].coupling.groups, result.passes[0].plan.widths, strict=True) if g.name == "q"
    ] == [(4, 3)]
    assert [w for g, w in zip(result.coupling.groups, result.plan.widths, strict=True) if g.name in "qv"] == [
        (4, 3)
    ] * 2


def test_heads_alone_may_be_all_that_goes() -> None:
    """1 of 2 heads is half already: widths stay."""
    result = removed("attention", "both")
    assert [w for g, w in zip(result.coupling.groups, result.plan.widths, strict=True) if g.name in "qv"] == [
        (8, 8)
    ] * 2


def test_one_ranking_over_all_takes_heads_too() -> None:
    recipe = Recipe.of(0.5, "random", scope="global", multiple_of=1, attention="both")
    result = compile_graph(model_of("attention_divided"), graph_of("attention_divided"), recipe)
    report = make_report(result, recipe, module_is_own=True)
    assert report.channels["removed_share"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_without_any_heads_widths_are_all_that_goes(scope: str) -> None:
    options = {"ratio": 0.5, "multiple_of": 1, "criterion": "l1", "scope": scope}
    plans = [slim(trained(Residual()), images(2), attention=which, **options).plan for which in ("both", "width")]
    assert plans[0].widths == plans[1].widths


def test_other_layers_lose_width_alone() -> None:
    for attention in ("heads", "both", "width"):
        result = removed("multihead_attention", attention)
        assert dict(zip((g.name for g in result.coupling.groups), result.plan.widths, strict=True))["mlp"] == (16, 8)


# -- what is said of it ---------------------------------------------------------------------------------------------


def test_the_report_counts_both_passes() -> None:
    recipe = Recipe.of(0.5, "random", multiple_of=1, attention="both")
    result = compile_graph(model_of("attention_divided"), graph_of("attention_divided"), recipe)
    report = make_report(result, recipe, module_is_own=True)
    assert report.channels["dense"] == 12 + 16 + 16
    assert report.channels["slim"] == 6 + 9 + 9
    assert report.dense["params"] == sum(p.numel() for p in model_of("attention_divided").parameters())
    rows = [row for row in report.groups if any(s["parameter"] == "q.weight" and s["axis"] == 0 for s in row["slices"])]
    heads, widths = (
        next(s["kept"] for s in row["slices"] if s["parameter"] == "q.weight" and s["axis"] == 0) for row in rows
    )
    assert [row.get("heads", False) for row in rows] == [True, False]
    assert len(heads) == 12
    assert {place // 4 for place in widths} == {place // 4 for place in heads}
    expected = model_of("attention_divided").q.weight[widths]  # type: ignore[index, union-attr]
    kept = [
        s["kept"] for row in report.groups for s in row["slices"] if s["parameter"] == "q.weight" and s["axis"] == 1
    ]
    assert torch.equal(result.small.tensors["q.weight"], expected[:, kept[0]])


@pytest.mark.parametrize("attention", ["heads", "both"])
def test_a_model_without_attention_says_so(attention: Any) -> None:
    result = removed("mlp", attention)
    assert any("no attention heads were found" in note for note in result.warnings)
    assert result.plan.widths == removed("mlp", "width").plan.widths
    assert not any("attention" in note for note in removed("mlp", "width").warnings)


@pytest.mark.parametrize("attention", ["heads", "both"])
@pytest.mark.parametrize("name", ["attention_by_hand", "attention_with_normed_keys", "multihead_attention"])
def test_a_saved_plan_is_restored(tmp_path: Path, name: str, attention: Any) -> None:
    result = removed(name, attention)
    small = make_small_module(model_of(name), result.small)
    recipe = Recipe.of(0.5, "random", multiple_of=1, attention=attention)
    save(result.small, small, tmp_path / "s.safetensors", result.removal(recipe))
    inputs = NETS[name].inputs(BATCH)
    again = restore(NETS[name].build(), tmp_path / "s.safetensors")
    assert_same(outputs_of(small.module, inputs), outputs_of(again, inputs), name)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(InputError, match=r"attention 'tails' is unknown; it is one of width, heads, both"):
        Recipe.of(attention="tails")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs the engine slim"):
        Recipe.of(attention="heads", engine="torch-pruning")


# -- graphs that follow one run -------------------------------------------------------------------------------------


class Branching(nn.Module):
    """A branch on values: torch.export refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = NETS["attention"].build()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e6:
            return x.sum(1)
        result: Tensor = self.attend(x)
        return result


def test_a_followed_run_loses_heads_and_widths() -> None:
    recipe = Recipe.of(0.6, "random", multiple_of=1, attention="both")
    result = compile_model(Branching().eval(), (normal(BATCH, 6, 5),), recipe)
    assert result.dense.program is None
    assert len(result.passes) == 2
    assert result.slim_cost.macs < result.passes[0].slim_cost.macs < result.dense_cost.macs


class Shuffled(nn.Module):
    """The first four channels, which become the first square of pixels, are an input's and no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, torch.relu(self.a(x))], 1)
        return self.c(torch.nn.functional.pixel_shuffle(y, 2)).softmax(1)


def test_labels_may_vary_at_some_places_of_the_other_axes_alone() -> None:
    """Found by scripts/fuzz: an assertion of ours failed."""
    graph = capture(Shuffled().eval(), (normal(2, 4, 4, 4),))
    assert not find_heads(graph).heads
