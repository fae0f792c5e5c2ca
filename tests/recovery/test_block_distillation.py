"""Blocks: where a single value passes, what a block on its own computes, and that it learns."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import Tensor, nn

from micronets import NETS
from micronets.compiled import coupling_of
from slim_model.budget.ratio import plan_by_ratio
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import positions_left
from slim_model.cutting.shrink_graph import shrink
from slim_model.data.holdout import split_off_held_out
from slim_model.data.open_data import open_data
from slim_model.errors import BudgetError
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.ranking.score import score
from slim_model.recipe import Recipe
from slim_model.recovery.distillation.blocks import Block, BlockRunner, find_blocks, train_blocks
from slim_model.recovery.linear_layers import find_linear_layers
from slim_model.recovery.referee import Referee
from slim_model.recovery.streamed_run import StreamedRun
from slim_model.simplifying.simplify import simplify
from small_nets import Residual, images, trained


def halved(coupling: Coupling) -> tuple[Graph, list[Block]]:
    plan = plan_by_ratio(coupling, score(coupling, "l1"), ratio=0.5)
    small, _ = shrink(coupling, plan.keep)
    layers = find_linear_layers(coupling.graph, small, positions_left(coupling, plan.keep))
    return small, find_blocks(coupling.graph, small, layers, at_once=1)


@functools.cache
def of_net(name: str) -> tuple[Graph, Graph, list[Block]]:
    coupling = coupling_of(name)
    try:
        return coupling.graph, *halved(coupling)
    except BudgetError:
        return coupling.graph, coupling.graph, []


SEVERAL_AXES = (
    "view_hard_coded_channels",
    "linear_over_places",
    "mask_repeated_over_channels",
    "conv_of_one_place_across_channels",
)
"""Nets in which channels lie on an axis that is not that of the layer before, too."""
WITHOUT_BLOCKS = """
    only_an_output residual_with_the_input cat_batch gram_matrix einsum_of_a_diagonal two_inputs_three_outputs
    branch_on_values lstm_from_a_given_state lstm_steps_first translation_with_attention language_model
    lstm_over_packed_sequences gru_over_packed_sequences channel_argmax cosine pooled_over_features
    unbind_every_channel histogram gathered_by_an_expanded_row gathered_by_computed_places
    copied_and_added_by_a_buffer
""".split()
"""Nets that are one block from end to end, take several inputs, give several outputs, fix the batch or lose nothing."""


@pytest.mark.parametrize("name", NETS)
def test_a_block_alone_computes_what_it_does_in_the_graph(name: str) -> None:
    """With another batch than that of the trace; and what is wanted of it has the same channels."""
    dense, small, found = of_net(name)
    assert found or name in WITHOUT_BLOCKS
    data = open_data([NETS[name].inputs(5)], dense.inputs)
    part, _ = split_off_held_out(data, dense)
    big, little, ahead = StreamedRun(dense, part), StreamedRun(small, part), StreamedRun(small, part)
    for block in found:
        (start,), (end,), (wanted,) = (
            [stop.values[at].clone() for stop in track.after(at)]
            for track, at in ((ahead, block.start), (little, block.end.name), (big, block.end.name))
        )
        torch.testing.assert_close(BlockRunner(small, block, small.tensors)(start), end)
        assert block.end.target(wanted).shape == end.shape or name in SEVERAL_AXES


def test_what_is_wanted_of_the_first_layer_is_what_it_gives() -> None:
    coupling = couple(simplify(trace(trained(Residual()), (images(),))))
    small, found = halved(coupling)
    x = images(6)
    (start,), (wanted,) = (
        [
            stop.values[at]
            for stop in StreamedRun(coupling.graph, split_off_held_out(open_data([x], (x,)), small)[0]).after(at)
        ]
        for at in (found[0].start, found[0].end.name)
    )
    torch.testing.assert_close(BlockRunner(small, found[0], small.tensors)(start), found[0].end.target(wanted))


def test_blocks_lie_between_the_sums_of_a_residual_net() -> None:
    """The last place ahead of the next layer."""
    _, found = halved(couple(simplify(trace(trained(Residual()), (images(),)))))
    assert [block.end.name for block in found] == ["relu", "relu_2", "relu_4", "linear"]


class Twice(nn.Module):
    """One convolution read twice, in two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.first(x))))
        return self.last(torch.relu(self.again(x)).mean((2, 3)))


def test_what_others_read_too_is_left_alone() -> None:
    _, found = halved(couple(simplify(trace(trained(Twice()), (images(),)))))
    assert {name for block in found for name in block.trained} == {
        "first.weight",
        "first.bias",
        "last.weight",
        "last.bias",
    }


def test_blocks_learn_what_single_layers_cannot() -> None:
    """On top of the best fit of every layer alone."""
    x = images(640)
    recipe = Recipe.of(0.5, "l1", recover="full", multiple_of=1, data=[*x.split(64)], samples=len(x))
    compiled = compile_model(trained(Residual()), (x[:2],), recipe)
    fit, held = split_off_held_out(open_data(recipe.data.data, (x[:2],), samples=len(x)), compiled.dense)
    layers = find_linear_layers(compiled.dense, compiled.small, compiled.kept_positions())
    learned, took = train_blocks(compiled.dense, compiled.small, layers, fit, held, at_once=1, steps=100)
    referee = Referee(compiled.dense, held)
    assert referee.judge(learned).better_than(referee.judge(compiled.small))
    errors = {end: re.findall(r"[\d.e-]+(?= ->)|(?<=-> )[\d.e-]+", text) for end, text in took.items()}
    for end in ("relu_2", "relu_4"):
        before, after = map(float, errors[end])
        assert after < 0.95 * before


@pytest.mark.parametrize("level", ["blocks", "network"])
def test_too_few_samples_to_learn_from(level: str) -> None:
    x = images(80)
    compiled = compile_model(
        trained(Residual()), (x[:2],), Recipe.of(0.5, "l1", recover=level, data=[x], multiple_of=1)
    )
    step = next(step for step in compiled.steps if step.name == level)
    assert set(step.did["blocks"].values()) == {"kept: 64 samples are too few"}
