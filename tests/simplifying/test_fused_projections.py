"""Fused projections are cut before they are viewed: queries and keys have channels of their own, and so have values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micronets import normal, randomised
from slim_model.coupling.couple import couple
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.ranking.criteria.slices import Slices
from slim_model.recipe import Recipe
from slim_model.simplifying.simplify import simplify

aten = torch.ops.aten
Cut = Callable[[Tensor], Sequence[Tensor]]
BATCH, TOKENS, HEADS, WIDTH = 2, 6, 2, 4


class Fused(nn.Module):
    """24 channels are queries, keys and values of two heads, 4 wide; ``cut`` gives three ``(batch, 2, 6, 4)``."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut
        self.qkv, self.proj = nn.Linear(5, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self.qkv(x))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _by_number(x: Tensor) -> Sequence[Tensor]:
    x = x.view(-1, TOKENS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    return x[0], x[1], x[-1]


def _packed(x: Tensor) -> Sequence[Tensor]:
    """As torch's own multi-head attention does it."""
    x = x.unflatten(-1, (3, HEADS * WIDTH)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return [x[i].view(-1, TOKENS, HEADS, WIDTH).transpose(1, 2) for i in range(3)]


CUTS: dict[str, Cut] = {
    "unbound": lambda x: x.reshape(-1, TOKENS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0),
    "by number": _by_number,
    "packed": _packed,
    "unbound in place": lambda x: [y.transpose(1, 2) for y in x.view(-1, TOKENS, 3, HEADS, WIDTH).unbind(2)],
    "heads in a row": lambda x: x.view(-1, TOKENS, 3 * HEADS, WIDTH).transpose(1, 2).chunk(3, 1),
    "tokens last": lambda x: [
        y.transpose(2, 3) for y in x.transpose(1, 2).reshape(-1, 3, HEADS, WIDTH, TOKENS).unbind(1)
    ],
}


def _partly_read(x: Tensor) -> Sequence[Tensor]:
    x = x.view(-1, TOKENS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    return x[0], x[0], x[1]


def _written(x: Tensor) -> Sequence[Tensor]:
    q, k, v = x.view(-1, TOKENS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
    q.mul_(0.5)
    return q, k, v


OTHERS: dict[str, Cut] = {
    "in turns": lambda x: x.view(-1, TOKENS, HEADS, 3, WIDTH).permute(3, 0, 2, 1, 4).unbind(0),
    "partly read": _partly_read,
    "written": _written,
    "split": lambda x: [y.reshape(-1, TOKENS, HEADS, WIDTH).transpose(1, 2) for y in x.split(HEADS * WIDTH, -1)],
    "tokens": lambda x: [y.expand(-1, 2, 6, 4) for y in x.view(-1, 3, 2, 1, 24)[..., :4].unbind(1)],
}


def model_of(cut: Cut) -> nn.Module:
    return randomised(Fused(cut))


def traced(cut: Cut) -> Graph:
    return trace(model_of(cut), (normal(BATCH, TOKENS, 5),))


def targets(graph: Graph) -> list[object]:
    """What the graph calls; a view is the reshape it becomes."""
    view, reshape = torch.ops.aten.view.default, torch.ops.aten.reshape.default
    return [reshape if n.target is view else n.target for n in graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("name", CUTS)
def test_a_fused_projection_is_split(name: str) -> None:
    graph = simplify(traced(CUTS[name]))
    layer = next(node for node in graph.nodes if node.target is aten.linear.default)
    (split,) = layer.users
    while split.target is aten.transpose.int:
        (split,) = split.users
    assert split.target is aten.split_with_sizes.default
    assert split.args[1] == [HEADS * WIDTH] * 3


@pytest.mark.parametrize("name", CUTS)
def test_queries_and_keys_are_ranked_apart_from_values(name: str) -> None:
    groups = couple(simplify(traced(CUTS[name]))).groups
    assert [(group.width, group.span) for group in groups] == [(WIDTH, 2 * HEADS), (WIDTH, HEADS)]
    rows = [{tuple(part.channel >= 0) for part in group.slices if part.parameter == "qkv.weight"} for group in groups]
    assert rows == [{(True,) * 16 + (False,) * 8}, {(False,) * 16 + (True,) * 8}]


def test_pieces_of_a_product_are_ranked_apart() -> None:
    """A projection that is a weight and a bias to be added, as GPT-2 has it."""

    class Added(Fused):
        def forward(self, x: Tensor) -> Tensor:
            rows = torch.addmm(self.qkv.bias, x.view(-1, x.shape[-1]), self.qkv.weight.t())
            q, k, v = (y.view(-1, TOKENS, HEADS, WIDTH).transpose(1, 2) for y in rows.split(HEADS * WIDTH, 1))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    graph = simplify(trace(randomised(Added(CUTS["unbound"])), (normal(BATCH, TOKENS, 5),)))
    assert [(group.width, group.span) for group in couple(graph).groups] == [(WIDTH, 2 * HEADS), (WIDTH, HEADS)]


@pytest.mark.parametrize("name", OTHERS)
def test_other_chains_stay_as_they_are(name: str) -> None:
    assert targets(simplify(traced(OTHERS[name]))) == targets(traced(OTHERS[name]))


@pytest.mark.parametrize("name", [*CUTS, *OTHERS])
def test_the_graph_computes_the_same(name: str) -> None:
    cut = (CUTS | OTHERS)[name]
    graph, model = simplify(traced(cut)), model_of(cut)
    for batch in (BATCH, 5):
        x = normal(batch, TOKENS, 5)
        with torch.no_grad():
            torch.testing.assert_close(graph.run((x,))[0], model(x))


@pytest.mark.parametrize("name", CUTS)
def test_widths_may_differ(name: str) -> None:
    """Of q and k one channel stands out, those of v are alike: one ranking takes 3 of q and k, and 1 of v."""

    def steep_for_keys(slices: Slices) -> Tensor:
        keys = slices.makes[0].shape[1] == 2 * HEADS * 5
        return torch.arange(1.0, slices.width + 1) ** (4 if keys else 0)

    recipe = Recipe.of(0.5, steep_for_keys, scope="global", multiple_of=1)
    result = compile_model(model_of(CUTS[name]), (normal(BATCH, TOKENS, 5),), recipe)
    assert result.plan.widths == ((4, 1), (4, 3))
