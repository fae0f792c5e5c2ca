"""The whole network learns at once, from pictures that are varied, and the same values come of it each time."""

from __future__ import annotations

import functools

import pytest
import torch

from slim_model.data.holdout import Parts, split_off_held_out
from slim_model.data.open_data import open_data
from slim_model.graph.graph import Graph
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.recipe import Recipe
from slim_model.recovery.distillation.network import train_network
from slim_model.recovery.linear_layers import LinearLayer, find_linear_layers
from slim_model.recovery.referee import Referee
from small_nets import Residual, images, trained


@functools.cache
def cut() -> tuple[Compiled, list[LinearLayer], Parts, Parts]:
    """After removal, with values as they were."""
    x = images(640)
    recipe = Recipe.of(0.5, "l1", recover="none", multiple_of=1, data=[*x.split(64)], samples=len(x))
    compiled = compile_model(trained(Residual()), (x[:2],), recipe)
    fit, held = split_off_held_out(open_data(recipe.data.data, (x[:2],), samples=len(x)), compiled.dense)
    layers = find_linear_layers(compiled.dense, compiled.small, compiled.kept_positions())
    return compiled, layers, fit, held


def learned(augment: str, passes: int) -> tuple[Graph, str]:
    compiled, layers, fit, held = cut()
    graph, took = train_network(compiled.dense, compiled.small, layers, fit, held, augment=augment, passes=passes)
    (said,) = took.values()
    return graph, said


@pytest.mark.parametrize("augment", ["none", "auto"])
def test_outputs_come_nearer(augment: str) -> None:
    compiled, _, _, held = cut()
    graph, said = learned(augment, 8)
    before, after = map(float, said.partition("error ")[2].split(" -> "))
    assert after < 0.9 * before
    referee = Referee(compiled.dense, held)
    assert referee.judge(graph).better_than(referee.judge(compiled.small))


def test_the_same_values_come_of_it_and_the_users_random_numbers_go_on() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, _ = learned("auto", 2)
    torch.testing.assert_close(torch.rand(3), wanted)
    again, _ = learned("auto", 2)
    plain, _ = learned("none", 2)
    for name in first.parameter_names:
        torch.testing.assert_close(first.tensors[name], again.tensors[name], rtol=0, atol=0)
    assert any(not torch.equal(first.tensors[name], plain.tensors[name]) for name in first.parameter_names)
