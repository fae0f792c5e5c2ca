"""Remedies work: a net that is written as the remedy says has the channels free that its reason pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_model.coupling.attention_heads import couple_attention
from slim_model.coupling.coupling import Coupling
from slim_model.coupling.remedies import REMEDIES
from slim_model.proof.capture import capture

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """``a`` makes the 8 channels in question of 3; ``c`` reads 8, ``d`` is another layer as ``a``, ``e`` gives one."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.d, self.e = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 1)
        self.c, self.second, self.narrow = nn.Linear(8, 2), nn.Linear(4, 2), nn.Linear(3, 2)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def coupled(forward: Forward, keep: tuple[str, ...] = ()) -> Coupling:
    torch.manual_seed(0)
    return couple_attention(capture(Net(forward).eval(), (torch.randn(2, 3),)), keep=keep)


PLAIN: Forward = lambda s, x: s.c(F.relu(s.a(x)))  # noqa: E731
PAIRS: dict[str, tuple[Forward, Forward]] = {
    "it is combined with a value whose positions are fixed": (
        lambda s, x: s.c(F.relu(s.a(x) + x.sum(1, keepdim=True) * torch.cat([x, x, x], 1)[:, :8])),
        lambda s, x: s.c(F.relu(s.a(x) + s.d(x))),
    ),
    "a single position of its axis is read by number": (
        lambda s, x: s.c(s.a(x)) * s.a(x)[:, 0:1],
        lambda s, x: s.c(s.a(x)) * s.e(x),
    ),
    "every n-th channel of a part is taken": (
        lambda s, x: s.narrow(s.a(x)[:, 0:6:2]),
        lambda s, x: s.second(s.a(x)[:, ::2]),
    ),
    "its bytes are read as another type": (
        lambda s, x: s.c(s.a(x).view(torch.int32).to(torch.float32)),
        lambda s, x: s.c(s.a(x).to(torch.int32).to(torch.float32)),
    ),
}
UNTRIED = 45
"""Remedies that no pair here follows. It only becomes less."""


@pytest.mark.parametrize("reason", PAIRS)
def test_a_remedy_frees_what_its_reason_pins(reason: str) -> None:
    before, after = (coupled(forward) for forward in PAIRS[reason])
    assert reason in {pin.why.partition(" (")[0] for pin in before.pinned}
    assert not any(pin.name == "a" for pin in after.pinned), after.pinned
    assert "a" in {group.name for group in after.groups}


def test_a_layer_that_was_kept_goes_without_the_option() -> None:
    assert [pin.why for pin in coupled(PLAIN, keep=("a",)).pinned if not pin.is_output] == [
        "you asked to keep it (--keep)"
    ]
    assert [group.name for group in coupled(PLAIN).groups] == ["a"]


def test_what_is_not_tried_only_becomes_less() -> None:
    assert PAIRS.keys() <= REMEDIES.keys()
    assert len(REMEDIES) - len(PAIRS) - 1 <= UNTRIED
