"""The proof and the ONNX check see at least two values of every input, over every micro-net and models that are called
with words, masks, bytes and lengths. scripts/fuzz holds random nets against it (``randomlaws``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micronets import NETS
from micronets.compiled import graph_of
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.loading.example_inputs import make_inputs
from slim_model.loading.input_spec import TensorSpec
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.example_batches import onnx_batches, other_batches
from slim_model.recipe import Recipe


def same_in(batches: list[tuple[Any, ...]]) -> list[int]:
    """Numbers of the inputs whose values are the same in all batches, on the samples that all have."""
    first, *others = batches
    return [
        number
        for number, x in enumerate(first)
        if isinstance(x, Tensor) and all(torch.equal(*cropped(x, other[number])) for other in others)
    ]


def cropped(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    places = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
    return a[places], b[places]


@pytest.mark.parametrize("name", NETS)
def test_of_every_micronet(name: str) -> None:
    graph = graph_of(name)
    assert same_in([graph.inputs, *other_batches(graph, (1,), 0)]) == []
    assert same_in(onnx_batches(graph, 0)) == []


class Texts(nn.Module):
    """(N, L) words, (N, L) segments of two kinds, (N, L) mask -> (N, L, 3), as BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.segments = nn.Embedding(50, 8), nn.Embedding(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.segments(kinds)
        x = self.attention(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0]
        return self.last(F.relu(self.wide(x)))


class Tables(nn.Module):
    """Looked up in parameters, by numbers that are moved on the way, and as classes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.shifted, self.classes = nn.Parameter(torch.randn(7, 8)), nn.Embedding(33, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
        x = self.table[i] + self.shifted(j[:, :4].to(torch.int64) + 2).sum(1, keepdim=True)
        return self.last(F.relu(x + self.classes(F.one_hot(k, 8).float())))


class Bytes(nn.Module):
    """(N, 3, 8, 8) bytes -> (N, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x.float() / 255).mean((2, 3)))


class Causal(nn.Module):
    """A causal mask and one that hides words: the first word sees nothing else, so it must not be hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor, sees: Tensor, hidden: Tensor) -> Tensor:
        return self.layer(x, src_mask=sees, src_key_padding_mask=hidden)


class Padded(nn.Module):
    """PyTorch's own encoder, which in eager mode leaves out what is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(50, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.last(self.encoder(self.words(ids), src_key_padding_mask=mask == 0).mean(1))


class Lengths(nn.Module):
    """Positions from a length on count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(x.shape[1]) < lengths[:, None]
        return self.last(self.layer(x) * inside[:, :, None])


class Positive(nn.Module):
    """The logarithm of a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.log()))


LONG = torch.int64
CASES: dict[str, tuple[type[nn.Module], list[tuple[tuple[int, ...], torch.dtype]] | tuple[Tensor, ...]]] = {
    "texts": (Texts, [((2, 6), LONG)] * 3),
    "one short text": (Texts, [((1, 2), LONG)] * 3),
    "tables": (Tables, [((2, 6), LONG), ((2, 6), torch.int32), ((2, 6), LONG)]),
    "bytes": (Bytes, [((1, 3, 8, 8), torch.uint8)]),
    "causal": (
        Causal,
        (
            torch.randn(2, 5, 8),
            torch.zeros(5, 5).masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf),
            torch.zeros(2, 5, dtype=torch.bool),
        ),
    ),
    "padded": (Padded, [((1, 9), LONG)] * 2),
    "lengths": (Lengths, (torch.randn(2, 5, 4), torch.tensor([5, 5]))),
    "spectrum": (Positive, (torch.rand(2, 5, 4) + 0.5,)),
}


def inputs_of(case: str) -> tuple[nn.Module, tuple[Any, ...]]:
    net, given = CASES[case]
    model = net().eval()
    return model, given if isinstance(given, tuple) else make_inputs(model, [TensorSpec(*spec) for spec in given], 0)


@pytest.mark.parametrize("case", CASES)
def test_of_words_masks_bytes_and_lengths(case: str) -> None:
    model, inputs = inputs_of(case)
    found = compile_model(model, inputs, Recipe.of(multiple_of=1))
    assert found.proof.same_inputs == ()
    assert found.proof.outputs_vary
    assert not any("tried" in note for note in found.warnings)
    assert same_in(onnx_batches(found.small, 0)) == []


def traced(case: str) -> Graph:
    return trace(*inputs_of(case))


def test_words_go_up_to_the_size_of_their_table() -> None:
    words, segments, mask = (x.flatten().tolist() for x in other_batches(traced("texts"), (200,), 0)[0])
    assert set(words) == set(range(50))
    assert set(segments) == {0, 1}
    assert set(mask) == {0, 1}
    i, j, k = (x.flatten().tolist() for x in other_batches(traced("tables"), (200,), 0)[0])
    assert (set(i), set(j), set(k)) == (set(range(7)), set(range(31)), set(range(8)))
    (x,) = other_batches(traced("bytes"), (50,), 0)[0]
    assert set(x.flatten().tolist()) == set(range(256))


def test_an_example_that_was_made_up_has_them_too() -> None:
    model, _ = inputs_of("texts")
    words, segments, mask = make_inputs(model, [TensorSpec((100, 6), LONG)] * 3, 0)
    assert set(words.flatten().tolist()) == set(range(50))
    assert set(segments.flatten().tolist()) == {0, 1}
    assert mask[:, 0].all(), "no text is hidden as a whole"
    assert not mask[:, -1].any()


class OnlyOne(Lengths):
    """Takes one length alone."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(x, lengths) / (lengths[:, None, None] == 5)


def test_what_was_not_varied_is_not_said_of_the_model() -> None:
    inputs = torch.randn(2, 5, 4), torch.tensor([5, 5])
    found = compile_model(OnlyOne().eval(), inputs, Recipe.of(multiple_of=1))
    assert found.proof.same_inputs == ("lengths",)
    assert list(found.warnings) == ["only one value of lengths was tried: the model takes no other that was found"]
