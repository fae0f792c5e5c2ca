"""Each net traced once, coupled once, and compiled once for a ratio and a seed."""

from __future__ import annotations

import functools

from torch import nn

from micronets.table import NETS
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.capture import make_followable
from slim_model.recipe import Recipe

BATCH, OTHER_BATCH = 2, 5


@functools.cache
def model_of(name: str) -> nn.Module:
    return NETS[name].build()


@functools.cache
def graph_of(name: str) -> Graph:
    return make_followable(trace(model_of(name), NETS[name].inputs(BATCH)))


@functools.cache
def coupling_of(name: str) -> Coupling:
    return couple(graph_of(name))


@functools.cache
def compiled(name: str, ratio: float, seed: int) -> Compiled:
    recipe = Recipe.of(ratio=ratio, seed=seed, criterion="random", multiple_of=1)
    return compile_graph(model_of(name), graph_of(name), recipe)


def compile_graph(model: nn.Module, graph: Graph, recipe: Recipe) -> Compiled:
    return compile_model(model, graph.inputs, recipe, graph=graph)
