"""The user's own module is handed out where each of its layers gives what it gives in the graph, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micronets import normal, randomised
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe

HEADS, WIDTH = 4, 4


class Remembered(nn.Module):
    """As many models do it: the width of a head is remembered, the number of heads is what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.proj, self.head = nn.Linear(5, 12), nn.Linear(HEADS * WIDTH, 12), nn.Linear(12, 3)
        self.q, self.k, self.v = (nn.Linear(12, HEADS * WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (part(x).view(*x.shape[:-1], -1, WIDTH).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        result: Tensor = self.head(x + self.proj(y.reshape(*x.shape[:-1], -1)))
        return result


def model() -> Remembered:
    """Attention adds a millionth to what it is added to, so that outputs do not show what it does."""
    built = randomised(Remembered())
    assert isinstance(built, Remembered)
    with torch.no_grad():
        built.proj.weight *= 1e-6
    return built


@pytest.mark.parametrize(("attention", "own"), [("width", False), ("heads", True)])
def test_a_module_that_cuts_other_heads_is_not_handed_out(attention: Any, own: bool) -> None:
    """Of 4 heads of 4 with half the width, 8 channels, a remembered width of 4 makes 2 heads: it runs, and is wrong."""
    inputs = (normal(2, 6, 5),)
    recipe = Recipe.of(0.5, "random", multiple_of=1, attention=attention)
    module, is_own, _ = make_small_module(model(), compile_model(model(), inputs, recipe).small)
    assert is_own is own
    assert isinstance(module, Remembered) is own


def test_numbers_that_the_forward_computes_do_not_matter() -> None:
    """The graph holds the product of two numbers, the module multiplies them."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(10, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            angles = torch.arange(1.0, 3.0)[:, None] @ torch.arange(1.0, 4.0)[None]
            result: Tensor = self.b(torch.relu(self.a(x))) + angles.sum(0)
            return result

    scaled = randomised(Scaled())
    result = compile_model(scaled, (normal(2, 10),), Recipe.of(0.5, multiple_of=1))
    module, own, _ = make_small_module(scaled, result.small)
    assert own
    assert isinstance(module, Scaled)


@pytest.mark.parametrize(("groups", "left"), [(8, 4), (2, 2), (16, 8), (1, 1)])
def test_a_group_norm_knows_how_many_groups_are_left(groups: int, left: int) -> None:
    """Many small groups go as a whole; few large ones each lose channels."""
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(groups, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 4))
    )
    result = compile_model(net, (normal(2, 3, 6, 6),), Recipe.of(0.5, multiple_of=1))
    module, own, _ = make_small_module(net, result.small)
    assert own
    assert isinstance(module, nn.Sequential)
    norm = module[1]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (left, 8)
