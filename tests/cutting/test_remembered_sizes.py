"""Sizes that modules remember follow what was removed, and only those that are sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micronets import normal, randomised
from slim_model.export.torch_files import restore, save
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe


class Attention(nn.Module):
    """Two heads; ``index`` is of the size of a head, and given by whoever builds the net."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.heads, self.width = 2, width
        self.qkv, self.proj = nn.Linear(10, 6 * width), nn.Linear(2 * width, 10)
        self.index = width

    def forward(self, x: Tensor) -> Tensor:
        batch, places, _ = x.shape
        parts = self.qkv(x).view(batch, places, self.heads, self.width * 3).transpose(1, 2)
        q, k, v = parts.split((self.width, self.width, self.width), -1)
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2)
        result: Tensor = self.proj(y.reshape(batch, places, self.heads * self.width))
        return result


class Halves(nn.Module):
    """Splits its channels by a number that it keeps."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.half = width
        self.a, self.b = nn.Linear(10, 2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.a(x).split((self.half, self.half), -1)
        result: Tensor = self.b(torch.cat([one.relu(), other.sigmoid()], -1))
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.halves, self.head = Attention(), Halves(), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.halves(x + self.attention(x)))
        return result


RECIPE = Recipe.of(0.5, "random", multiple_of=1, seed=1, equal_pieces=True)


def test_the_class_splits_by_what_is_left(tmp_path: Path) -> None:
    """Also a copy that is restored from a file. Without the numbers the class cannot run."""
    net, x = randomised(Net()), normal(2, 5, 10)
    compiled = compile_model(net, (x,), RECIPE)
    assert not make_small_module(net, compiled.small).own
    small = make_small_module(net, compiled.small, compiled.dense)
    assert small.own
    assert small.sizes == {"attention": {"width": 3}, "halves": {"half": 4}}
    save(compiled.small, small, tmp_path / "small.safetensors", compiled.removal(RECIPE))
    restored = restore(randomised(Net()), tmp_path / "small.safetensors")
    assert isinstance(restored, Net)
    assert (restored.attention.width, restored.attention.index, restored.attention.heads) == (3, 6, 2)
    expected = compiled.small.run((x,))[0]
    assert torch.allclose(restored(x), expected, atol=1e-6)


def test_equal_pieces_lose_the_same_positions() -> None:
    """At random half of each goes anyway; which, and how many, follow from the ties alone where it is asked for."""
    net, x = randomised(Halves()), normal(2, 10)
    for equal in (True, False):
        compiled = compile_model(net, (x,), Recipe.of(0.5, "random", multiple_of=1, seed=1, equal_pieces=equal))
        left = compiled.kept_positions()["a.weight", 0]
        same = (left[left < 8] == left[left >= 8] - 8).all() if len(left) % 2 == 0 else False
        assert bool(same) is equal
