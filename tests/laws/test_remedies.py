"""Remedies work: a net that is written as the remedy says has the channels free that its reason pinned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
VECTOR, TOKENS, PICTURE = (2, 3), (2, 4, 3), (2, 3, 6, 6)


class Net(nn.Module):
    """``a`` makes the 8 channels in question of 3, ``d`` is another layer as ``a``, ``e`` gives one; the others read
    as many channels as they are named after."""

    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.a, self.d, self.e = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 1)
        self.c, self.narrow, self.four, self.six = nn.Linear(8, 2), nn.Linear(3, 2), nn.Linear(4, 2), nn.Linear(6, 2)
        self.ten, self.sixteen, self.many = nn.Linear(10, 2), nn.Linear(16, 2), nn.Linear(64, 2)
        self.between, self.to_one = nn.Linear(8, 8), nn.Linear(8, 1)
        self.each, self.matrix = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 8))
        self.places: Tensor
        self.samples: Tensor
        self.register_buffer("places", torch.tensor([5, 0, 2]))
        self.register_buffer("samples", torch.tensor([1, 0, 1]))
        self.written = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


@dataclass(frozen=True, slots=True)
class Pair:
    """A forward whose ``a`` is pinned, and the same as the remedy says. ``parts``: layers in place of those of `Net`;
    ``then``: the shape that the second is run on, where it is another."""

    before: Forward
    after: Forward
    shape: tuple[int, ...] = VECTOR
    then: tuple[int, ...] = ()
    parts: Callable[[], dict[str, nn.Module]] = dict

    def coupled(self) -> tuple[Coupling, Coupling]:
        pairs = ((self.before, self.shape), (self.after, self.then or self.shape))
        first, second = (coupled(forward, shape, **self.parts()) for forward, shape in pairs)
        return first, second


def coupled(
    forward: Forward, shape: tuple[int, ...] = VECTOR, keep: tuple[str, ...] = (), **parts: nn.Module
) -> Coupling:
    torch.manual_seed(0)
    return couple_attention(capture(Net(forward, **parts).eval(), (torch.randn(shape),)), keep=keep)


def given(x: Tensor) -> Tensor:
    """``x`` with 8 numbers on its axis of 3: positions that no layer made."""
    axis = 1 if x.dim() != 3 else 2
    return torch.cat([x, x, x], axis).narrow(axis, 0, 8)


def _conv() -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(3, 8, 3, padding=1)}


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _unpooled(values: Tensor, places: Tensor) -> Tensor:
    found = F.max_pool2d(places, 2, return_indices=True)[1]
    return F.max_unpool2d(F.max_pool2d(values, 2), found, 2)


def _checked(values: Tensor) -> Tensor:
    torch.ops.aten._assert_tensor_metadata(values, list(values.shape))
    return values


def _decided(s: Any, x: Tensor, share: Callable[[Tensor], Tensor]) -> Tensor:
    """Followed in one run, as values decide how many there are."""
    y = s.a(x)
    return s.c(y) * share(y) + x[x > 0].sum()


PLAIN: Forward = lambda s, x: s.c(F.relu(s.a(x)))  # noqa: E731
PAIRS: dict[str, Pair] = {
    # labels and couple
    "this operation has no rule": Pair(
        lambda s, x: s.c(torch.fft.fft(s.a(x)).real), lambda s, x: s.c(s.a(x) @ s.matrix)
    ),
    "it meets positions that are fixed": Pair(
        lambda s, x: s.c(F.glu(torch.cat([s.a(x), given(x)], 1))),
        lambda s, x: s.c(F.glu(torch.cat([s.a(x), s.d(x)], 1))),
    ),
    "a single position of its axis is read by number": Pair(
        lambda s, x: s.c(s.a(x)) * s.a(x)[:, 0:1], lambda s, x: s.c(s.a(x)) * s.e(x)
    ),
    "it is contracted with fixed values": Pair(
        lambda s, x: (s.a(x)[:, None] @ given(x)[:, :, None])[:, 0],
        lambda s, x: s.a(x) @ s.matrix[:, :2],
    ),
    # layers
    "its bias is fixed": Pair(
        lambda s, x: s.c(F.linear(x, s.a.weight, given(x)[0])), lambda s, x: s.c(F.linear(x, s.a.weight, s.a.bias))
    ),
    "its axis is spatial, and a convolution runs along it": Pair(
        lambda s, x: s.six(s.along(s.a(x)).mean(1)),
        lambda s, x: s.across(s.a(x).permute(0, 2, 1)).mean(2),
        TOKENS,
        parts=lambda: {"along": nn.Conv1d(4, 2, 3), "across": nn.Conv1d(8, 2, 3)},
    ),
    "it is multiplied with a batch of fixed size": Pair(
        lambda s, x: s.c((s.a(x)[..., None, None] @ given(x)[..., None, None]).flatten(1)),
        lambda s, x: (s.a(x)[:, None] @ s.matrix[:, :2]).flatten(1),
    ),
    "it is added to a value whose positions are fixed": Pair(
        lambda s, x: s.c(torch.addmm(given(x), x, s.a.weight.t())),
        lambda s, x: s.c(torch.addmm(s.d(x), x, s.a.weight.t())),
    ),
    "this form of einsum has no rule": Pair(
        lambda s, x: s.c(torch.einsum("bi,ii->bi", s.a(x), s.matrix)),
        lambda s, x: s.c(torch.einsum("bi,i->bi", s.a(x), s.each)),
    ),
    "it is multiplied with a value whose positions are fixed": Pair(
        lambda s, x: s.c(torch.einsum("bi,bi->bi", s.a(x), given(x))),
        lambda s, x: s.c(torch.einsum("bi,bi->bi", s.a(x), s.d(x))),
    ),
    "its other axes are fixed": Pair(
        lambda s, x: s.c(s.both(s.a(x)[..., None], given(x)[..., None])[..., 0]),
        lambda s, x: s.c(s.both(s.a(x)[..., None], s.d(x)[..., None])[..., 0]),
        parts=lambda: {"both": nn.Bilinear(1, 1, 1)},
    ),
    "tokens are fixed": Pair(
        lambda s, x: _attention(x[..., None], s.a(x)[..., None], given(x)[..., None])[:, :2, 0],
        lambda s, x: s.c(_attention(s.a(x), s.d(x), s.d(x))),
        VECTOR,
        TOKENS,
    ),
    "attention is normalised over it": Pair(
        lambda s, x: _attention(x[..., None], s.a(x)[..., None], s.d(x)[..., None])[:, :2, 0],
        lambda s, x: s.c(_attention(s.a(x), s.d(x), s.d(x))),
        VECTOR,
        TOKENS,
    ),
    "it is combined with a fixed number of heads": Pair(
        lambda s, x: s.c(_attention(*(v.mT[..., None] for v in (s.a(x), given(x), given(x))))[..., 0].mT),
        lambda s, x: s.c(_attention(*(v.mT[..., None] for v in (s.a(x), s.d(x), s.d(x))))[..., 0].mT),
        TOKENS,
    ),
    # norms and pointwise
    "its normalisation is fixed": Pair(
        lambda s, x: s.c(F.layer_norm(s.a(x), (8,), given(x)[0])), lambda s, x: s.c(F.layer_norm(s.a(x), (8,), s.each))
    ),
    "it is normalised over it": Pair(
        lambda s, x: s.c(F.instance_norm(s.a(x))), lambda s, x: s.c(F.instance_norm(s.a(x).mT).mT), TOKENS
    ),
    "it is combined with a value whose positions are fixed": Pair(
        lambda s, x: s.c(F.relu(s.a(x) + x.sum(1, keepdim=True) * given(x))),
        lambda s, x: s.c(F.relu(s.a(x) + s.d(x))),
    ),
    "it is joined with a value whose positions are fixed": Pair(
        lambda s, x: s.c(torch.cat([s.a(x), given(x)])), lambda s, x: s.c(torch.cat([s.a(x), s.d(x)]))
    ),
    "it is stacked with a value whose positions are fixed": Pair(
        lambda s, x: s.c(torch.stack([s.a(x), given(x)]).prod(0)),
        lambda s, x: s.c(torch.stack([s.a(x), s.d(x)]).prod(0)),
    ),
    "it is padded with its own values": Pair(
        lambda s, x: s.ten(F.pad(s.a(x), (1, 1), mode="reflect")), lambda s, x: s.ten(F.pad(s.a(x), (1, 1))), TOKENS
    ),
    "its slopes are fixed": Pair(
        lambda s, x: s.c(F.prelu(s.a(x), given(x)[0])), lambda s, x: s.c(F.prelu(s.a(x), s.each))
    ),
    "its size is checked": Pair(
        lambda s, x: s.c(_checked(s.a(x))),
        lambda s, x: s.c(s.a(x)),
    ),
    # values along an axis
    "its indices come from fixed channels": Pair(
        lambda s, x: s.c(_unpooled(s.a(x), given(x)).mean((2, 3))),
        lambda s, x: s.c(_unpooled(s.a(x), s.a(x)).mean((2, 3))),
        PICTURE,
        parts=_conv,
    ),
    "its positions are used as data": Pair(
        lambda s, x: s.c(s.a(x)) + given(x).gather(1, (s.a(x) > 0).long()).sum(1, keepdim=True),
        lambda s, x: s.c(s.a(x)) + given(x).gather(1, (given(x) > 0).long()).sum(1, keepdim=True),
    ),
    "its axis is spatial": Pair(
        lambda s, x: s.four(F.max_pool1d(s.a(x), 2)), lambda s, x: s.c(F.max_pool1d(s.a(x).mT, 2).mT), TOKENS
    ),
    "values along it are compared with each other": Pair(
        lambda s, x: s.c(s.a(x).softmax(1)), lambda s, x: s.c(s.between(s.a(x)).softmax(1))
    ),
    "a triangle of it is cut out": Pair(
        lambda s, x: s.c(s.a(x).tril()), lambda s, x: s.four((s.a(x) @ s.a(x).mT).tril()), TOKENS
    ),
    "all its values are used together": Pair(
        lambda s, x: s.c(s.a(x)) + torch.take_along_dim(s.a(x), x.flatten().argsort()[:2]),
        lambda s, x: s.c(s.a(x)) + torch.take_along_dim(s.d(x), x.flatten().argsort()[:2]),
    ),
    "it is reduced to one value": Pair(
        lambda s, x: s.c(s.a(x)) * s.a(x).prod(1, keepdim=True), lambda s, x: s.c(s.a(x)) * s.a(x).sum(1, keepdim=True)
    ),
    "the model's own class would take it over the channels that are left": Pair(
        lambda s, x: _decided(s, x, lambda y: y.mean(1, keepdim=True)),
        lambda s, x: _decided(s, x, lambda y: y.sum(1, keepdim=True) * 0.125),
    ),
    "it is compared with fixed values": Pair(
        lambda s, x: s.c(s.a(x)) * F.cosine_similarity(s.a(x), given(x))[:, None],
        lambda s, x: s.c(s.a(x)) * F.cosine_similarity(s.a(x), s.d(x))[:, None],
    ),
    # moving
    "nothing of it is left for the example input": Pair(
        lambda s, x: s.c(s.a(x).narrow(1, 4, x.shape[1] - 4)).sum(1),
        lambda s, x: s.c(s.a(x).narrow(1, 4, x.shape[1] - 4)).sum(1),
        TOKENS,
        (2, 6, 3),
    ),
    "it is given the sizes of a value whose positions are fixed": Pair(
        lambda s, x: s.c(s.a(x).view_as(given(x))), lambda s, x: s.c(s.a(x).view_as(s.d(x)))
    ),
    "two channel axes are merged into one": Pair(
        lambda s, x: s.many((s.d(x)[:, :, None] * s.a(x)[:, None]).flatten(1)),
        lambda s, x: s.c(s.to_one(s.d(x)[:, :, None] * s.a(x)[:, None]).flatten(1)),
    ),
    "its bytes are read as another type": Pair(
        lambda s, x: s.c(s.a(x).view(torch.int32).to(torch.float32)),
        lambda s, x: s.c(s.a(x).to(torch.int32).to(torch.float32)),
    ),
    "patches are cut along it": Pair(
        lambda s, x: s.four(F.unfold(s.a(x)[:, None], 2)[..., :4]),
        lambda s, x: s.sixteen(F.unfold(s.a(x).mT[:, :, None], (1, 2)).mT),
        TOKENS,
    ),
    "patches are summed along it": Pair(
        lambda s, x: s.narrow(F.fold(s.a(x), (5, 3), 2)[:, 0]),
        lambda s, x: s.narrow(F.fold(s.a(x).mT, 3, 2).sum(1)),
        TOKENS,
    ),
    "every n-th channel of a part is taken": Pair(
        lambda s, x: s.narrow(s.a(x)[:, 0:6:2]), lambda s, x: s.four(s.a(x)[:, ::2])
    ),
    "it is indexed by computed values": Pair(
        lambda s, x: s.narrow(s.a(x)[:, (x.sum(0) > 0).long()]), lambda s, x: s.narrow(s.a(x)[:, s.places])
    ),
    "it is indexed by values that cannot be rewritten": Pair(
        lambda s, x: s.four(s.a(x)[s.samples, :, s.places]), lambda s, x: s.narrow(s.a(x)[..., s.places]), TOKENS
    ),
    # recurrent layers
    "its weights are fixed": Pair(
        lambda s, x: s.c(torch.rnn_tanh_cell(x, s.a(x), s.a.weight_ih, s.a.weight_hh, given(x)[0], s.a.bias_hh)),
        lambda s, x: s.c(torch.rnn_tanh_cell(x, s.a(x), s.a.weight_ih, s.a.weight_hh, s.a.bias_ih, s.a.bias_hh)),
        parts=lambda: {"a": nn.RNNCell(3, 8)},
    ),
    "its initial state is fixed": Pair(
        lambda s, x: s.c(s.a(x, given(x))), lambda s, x: s.c(s.a(x)), parts=lambda: {"a": nn.RNNCell(3, 8)}
    ),
    "its positions are steps, samples or layers": Pair(
        lambda s, x: s.four(s.along(s.a(x)[..., None])[0]),
        lambda s, x: s.four(s.over(s.a(x)[:, None])[0]),
        parts=lambda: {"along": nn.RNN(1, 4, batch_first=True), "over": nn.RNN(8, 4, batch_first=True)},
    ),
}


MORE: dict[str, tuple[str, Pair]] = {
    "gates from neighbouring channels": (
        "its axis is spatial, and a convolution runs along it",
        Pair(
            lambda s, x: s.c(s.a(x) * F.pad(s.along(s.a(x)[:, None])[:, 0], (2, 0)).sigmoid()),
            lambda s, x: s.c(s.a(x) * s.between(s.a(x)).sigmoid()),
            parts=lambda: {"along": nn.Conv1d(1, 1, 3)},
        ),
    ),
    "gates from neighbouring channels in a ring": (
        "it is padded with its own values",
        Pair(
            lambda s, x: s.c(s.a(x) * s.along(F.pad(s.a(x)[:, None], (1, 1), mode="reflect"))[:, 0].sigmoid()),
            lambda s, x: s.c(s.a(x) * s.padded(s.a(x)[:, None])[:, 0].sigmoid()),
            parts=lambda: {"along": nn.Conv1d(1, 1, 3), "padded": nn.Conv1d(1, 1, 3, padding=1)},
        ),
    ),
    "local response norm": (
        "its axis is spatial",
        Pair(
            lambda s, x: s.c(F.local_response_norm(s.a(x), 3).mean((2, 3))),
            lambda s, x: s.c(s.norm(s.a(x)).mean((2, 3))),
            PICTURE,
            parts=lambda: _conv() | {"norm": nn.BatchNorm2d(8)},
        ),
    ),
    "softmax over places": (
        "values along it are compared with each other",
        Pair(lambda s, x: s.c(s.a(x).softmax(2)), lambda s, x: s.c(s.a(x).softmax(1)), TOKENS),
    ),
}
"""By what it is about, the reason: other ways that remedies name."""
EACH = {**{reason: (reason, pair) for reason, pair in PAIRS.items()}, **MORE}


@pytest.mark.parametrize("name", EACH)
def test_a_remedy_frees_what_its_reason_pins(name: str) -> None:
    reason, pair = EACH[name]
    before, after = pair.coupled()
    held = [pin for pin in before.pinned if pin.why.partition(" (")[0] == reason]
    assert "a" in {pin.name for pin in held}, before.pinned
    assert not any(pin.name == "a" for pin in after.pinned), after.pinned
    assert any(part.parameter.startswith("a.") for group in after.groups for part in group.slices)


UNTRIED = {
    "it is an output of the model": "what a caller reads stays",
    "its rule does not cover this case": "of a rule that fails, which no rule is known to do",
    "removing channels here could not be shown to be exact": "of a rule that is wrong, which no rule is known to be",
    "the blocks of a grouped convolution keep their width": "whole groups go instead",
    "it is looked up by the model's input": "a vocabulary stays",
    "its positions are coordinates": "coordinates stay",
}
"""Remedies that say that nothing is to be done, or to report the model, and why."""
ASKED = "you asked to keep it (--keep)"


def test_each_remedy_is_tried_or_asks_for_nothing() -> None:
    assert {*PAIRS, *UNTRIED, ASKED} == REMEDIES.keys()
    for reason in UNTRIED:
        assert REMEDIES[reason].startswith("None") or "report" in REMEDIES[reason], REMEDIES[reason]


def test_a_layer_that_was_kept_goes_without_the_option() -> None:
    assert [pin.why for pin in coupled(PLAIN, keep=("a",)).pinned if not pin.is_output] == [ASKED]
    assert [group.name for group in coupled(PLAIN).groups] == ["a"]


FIXED_WHERE_MADE: dict[str, Pair] = {
    "linear": Pair(lambda s, x: s.c(F.linear(x, s.a.weight, given(x)[0])), PLAIN),
    "convolution": Pair(
        lambda s, x: s.c(F.conv2d(x, s.a.weight, given(x)[0, :, 0, 0]).mean((2, 3))), PLAIN, PICTURE, parts=_conv
    ),
    "einsum": Pair(lambda s, x: s.c(torch.einsum("bi,oi,o->bo", x, s.a.weight, given(x)[0])), PLAIN),
    "bilinear": Pair(
        lambda s, x: s.c(F.bilinear(x, x, s.a.weight, given(x)[0])),
        PLAIN,
        parts=lambda: {"a": nn.Bilinear(3, 3, 8)},
    ),
    "recurrent": Pair(
        lambda s, x: s.c(
            torch.rnn_tanh_cell(x, s.between(given(x)), s.a.weight_ih, s.a.weight_hh, given(x)[0], s.a.bias_hh)
        ),
        PLAIN,
        parts=lambda: {"a": nn.RNNCell(3, 8)},
    ),
}


@pytest.mark.parametrize("name", FIXED_WHERE_MADE)
def test_channels_that_are_fixed_where_they_are_made_are_reported(name: str) -> None:
    pair = FIXED_WHERE_MADE[name]
    found = coupled(pair.before, pair.shape, **pair.parts())
    assert ("a", 8) in {(pin.name, pin.channels) for pin in found.pinned}, found.pinned
