"""Coupling, by hand: which channels go together, what is pinned and why, where each group sits."""

from __future__ import annotations

from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_model.coupling.couple import couple, find_components
from slim_model.coupling.coupling import Coupling, Group, Pinned
from slim_model.errors import InputError
from slim_model.graph.trace import trace
from slim_model.proof.capture import capture
from slim_model.simplifying.simplify import simplify


def linear(given: int, out: int) -> nn.Linear:
    return nn.Linear(given, out, bias=False)


def conv(given: int, out: int, **rest: Any) -> nn.Conv2d:
    return nn.Conv2d(given, out, 3, padding=1, bias=False, **rest)


def coupled(forward: Any, *, x: tuple[int, ...] = (2, 3), keep: tuple[str, ...] = (), **parts: nn.Module) -> Coupling:
    """The coupling of a net with this forward, whose first argument holds the layers."""
    code = forward.__code__.replace(co_name="forward")  # torch keeps the lines of no other function
    net = type("Net", (nn.Module,), {"forward": FunctionType(code, forward.__globals__, closure=forward.__closure__)})()
    for name, part in parts.items():
        net.add_module(name, part)
    return couple(simplify(trace(net.eval(), (torch.zeros(x),))), keep=keep)


def slices(group: Group) -> dict[tuple[str, int], tuple[str, list[int]]]:
    """(parameter, axis) -> role, and the channel at each position."""
    return {(part.parameter, part.axis): (part.role, part.channel.tolist()) for part in group.slices}


def tied(coupling: Coupling) -> list[tuple[str, int]]:
    return [(group.name, group.width) for group in coupling.groups]


# -- groups ---------------------------------------------------------------------------------------------------------


def test_a_chain_has_one_group_a_hidden_layer() -> None:
    coupling = coupled(lambda s, x: s.b(F.relu(s.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    (group,) = coupling.groups
    assert (group.name, group.width, group.span) == ("a", 4, 1)
    assert slices(group) == {
        ("a.weight", 0): ("makes", [0, 1, 2, 3]),
        ("a.bias", 0): ("holds", [0, 1, 2, 3]),
        ("b.weight", 1): ("reads", [0, 1, 2, 3]),
    }
    assert group.where.startswith("test_couple.py:")


def test_what_is_added_goes_together() -> None:
    coupling = coupled(lambda s, x: s.c(s.a(x) + s.b(x)), a=linear(3, 4), b=linear(3, 4), c=linear(4, 2))
    (group,) = coupling.groups
    assert slices(group) == {
        ("a.weight", 0): ("makes", [0, 1, 2, 3]),
        ("b.weight", 0): ("makes", [0, 1, 2, 3]),
        ("c.weight", 1): ("reads", [0, 1, 2, 3]),
    }


def test_what_is_joined_goes_apart() -> None:
    """The reader's columns: two of ``a``, then three of ``b``."""
    coupling = coupled(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), a=linear(3, 2), b=linear(3, 3), c=linear(5, 2))
    assert tied(coupling) == [("a", 2), ("b", 3)]
    assert slices(coupling.groups[0])["c.weight", 1] == ("reads", [0, 1, -1, -1, -1])
    assert slices(coupling.groups[1])["c.weight", 1] == ("reads", [-1, -1, 0, 1, 2])


def test_what_is_split_is_ranked_by_piece() -> None:
    """2 + 3 channels of one layer: neither piece loses all of its own because the other's score higher."""

    def forward(s: Any, x: Tensor) -> Tensor:
        one, two = s.a(x).split([2, 3], 1)
        return s.b(one) + s.c(two)

    coupling = coupled(forward, a=linear(3, 5), b=linear(2, 4), c=linear(3, 4))
    assert tied(coupling)[:2] == [("a", 2), ("a", 3)]
    assert slices(coupling.groups[0]) == {
        ("a.weight", 0): ("makes", [0, 1, -1, -1, -1]),
        ("b.weight", 1): ("reads", [0, 1]),
    }
    assert slices(coupling.groups[1])["a.weight", 0] == ("makes", [-1, -1, 0, 1, 2])


def test_a_channel_may_take_several_positions() -> None:
    """A map of 2 x 2 places, flattened: channel c sits at columns 4c .. 4c + 3."""
    coupling = coupled(lambda s, x: s.b(s.a(x).flatten(1)), x=(2, 3, 2, 2), a=conv(3, 2), b=linear(8, 2))
    (group,) = coupling.groups
    assert slices(group)["b.weight", 1] == ("reads", [0, 0, 0, 0, 1, 1, 1, 1])


def test_heads_are_viewed_as_one_channel_of_their_width() -> None:
    """6 outputs as 2 heads of 3: the place within the heads is the channel, and spans both."""
    coupling = coupled(lambda s, x: s.b(s.a(x).view(-1, 2, 3).softmax(1).flatten(1)), a=linear(3, 6), b=linear(6, 2))
    (group,) = coupling.groups
    assert (group.width, group.span) == (3, 2)
    assert slices(group)["a.weight", 0] == ("makes", [0, 1, 2, 0, 1, 2])


def test_a_depthwise_layer_goes_with_what_it_reads() -> None:
    coupling = coupled(
        lambda s, x: s.c(s.b(s.a(x))).mean((2, 3)), x=(2, 3, 4, 4), a=conv(3, 4), b=conv(4, 4, groups=4), c=conv(4, 2)
    )
    (group,) = coupling.groups
    assert slices(group) == {
        ("a.weight", 0): ("makes", [0, 1, 2, 3]),
        ("b.weight", 0): ("makes", [0, 1, 2, 3]),
        ("c.weight", 1): ("reads", [0, 1, 2, 3]),
    }


def grouped(groups: int, *, also: Any = lambda x: 0) -> Coupling:
    return coupled(
        lambda s, x: s.c(s.b(y := s.a(x))).mean((2, 3)) + also(y),
        **{"x": (2, 3, 4, 4), "a": conv(3, 6), "b": conv(6, 6, groups=groups), "c": conv(6, 2)},
    )


def test_few_large_groups_lose_the_same_places_of_each() -> None:
    """2 groups of 3: channels 0 and 3 are read by the same column of the weight."""
    read = slices(grouped(2).groups[0])
    assert read["a.weight", 0] == ("makes", [0, 1, 2, 0, 1, 2])
    assert read["b.weight", 1] == ("reads", [0, 1, 2])


def test_many_small_groups_go_as_a_whole() -> None:
    """3 groups of 2."""
    (group,) = grouped(3).groups
    assert slices(group) == {
        ("a.weight", 0): ("makes", [0, 0, 1, 1, 2, 2]),
        ("b.weight", 0): ("makes", [0, 0, 1, 1, 2, 2]),
        ("c.weight", 1): ("reads", [0, 0, 1, 1, 2, 2]),
    }


def test_where_no_whole_group_can_go_the_same_places_of_each_do() -> None:
    """What the 3 groups read is fixed by a running sum; what they make is not."""
    coupling = grouped(3, also=lambda y: y.cumsum(1).mean((1, 2, 3))[:, None])
    assert slices(coupling.groups[0]) == {
        ("b.weight", 0): ("makes", [0, 1, 0, 1, 0, 1]),
        ("c.weight", 1): ("reads", [0, 1, 0, 1, 0, 1]),
    }


# -- pins -----------------------------------------------------------------------------------------------------------


class Repeated(nn.Module):
    """Features repeated over places, mixed by a product that knows nothing of places, and read over all places."""

    def __init__(self, product: str, read: str) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(10, 8), nn.Linear(8, 5)
        self.mix = nn.Parameter(torch.randn(8, 8))
        self.product, self.read = product, read

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[:, :, None].expand(-1, -1, 6)
        if self.product == "einsum":
            x = torch.einsum("bct,oc->bot", x, self.mix)
        elif self.product == "matmul":
            x = self.mix @ x
        else:
            x = torch.tensordot(x, self.mix, dims=([1], [1])).transpose(1, 2)
        return self.head(x.mean(2) if self.read == "mean" else x.amax(2))


@pytest.mark.parametrize("read", ["mean", "amax"])
@pytest.mark.parametrize(("product", "widths"), [("einsum", [8, 8]), ("matmul", [8]), ("tensordot", [8, 8])])
def test_places_that_are_copies_are_no_channels(product: str, widths: list[int], read: str) -> None:
    """They were ranked beside the channels of the product, as the least ones, and a mean over them was another then.
    Of a matrix product the columns alone are channels, so that none of ``mix @ x`` are."""
    coupling = couple(capture(Repeated(product, read).eval(), (torch.randn(2, 10),)))
    assert [group.width for group in coupling.groups] == widths
    assert coupling.free_share == 1.0


def test_a_models_own_outputs_are_pinned_as_outputs() -> None:
    coupling = coupled(lambda s, x: s.b(F.relu(s.a(x))), a=linear(3, 4), b=linear(4, 2))
    assert coupling.pinned == (Pinned("b", 2, "output", "", "it is an output of the model", True),)
    assert (coupling.free, coupling.free_share) == (4, 1.0)


def test_the_nearest_reason_is_named_with_its_line() -> None:
    """``a`` is added to the user's input."""
    coupling = coupled(lambda s, x: s.c(s.a(x) + x), a=linear(3, 3), c=linear(3, 2))
    (pin, _) = coupling.pinned
    assert (pin.name, pin.channels, pin.op, pin.is_output) == ("a", 3, "aten.add.Tensor", False)
    assert pin.where.startswith("test_couple.py:")
    assert "s.a(x) + x" in pin.where
    assert coupling.free_share == 0


def test_layers_that_the_user_keeps_stay() -> None:
    parts = {"a": linear(3, 4), "b": linear(4, 5), "c": linear(5, 2)}
    coupling = coupled(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), keep=("b*",), **parts)
    assert tied(coupling) == [("a", 4)]
    assert coupling.pinned[0] == Pinned("b", 5, "", "", "you asked to keep it (--keep)", False)
    assert coupling.free_share == 4 / 9  # of the 4 of a and the 5 of b
    with pytest.raises(InputError, match=r"--keep 'd' matches no layer of this model\. Its layers are named a, b, c\."):
        coupled(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), keep=("d",), **parts)


class Headed(nn.Module):
    """A module of two layers, as heads are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = linear(3, 4), nn.Sequential(linear(4, 6), nn.ReLU(), linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x)))


@pytest.mark.parametrize(
    ("pattern", "says", "meant"),
    [
        ("head", r"a module that holds layers: --keep 'head\.\*' keeps them \(head\.0, head\.2\)", "head.*"),
        ("stm", r"Did you mean stem\?", "stem"),
    ],
)
def test_a_pattern_that_matches_nothing_has_a_hint_that_works(pattern: str, says: str, meant: str) -> None:
    graph = trace(Headed(), (torch.zeros(2, 3),))
    with pytest.raises(InputError, match=says):
        couple(graph, keep=(pattern,))
    assert any(
        pin.name.startswith(meant.rstrip("*")) and not pin.is_output for pin in couple(graph, keep=(meant,)).pinned
    )


def test_a_node_that_could_not_be_cut_is_named_with_what_went_wrong() -> None:
    graph = trace(nn.Sequential(linear(3, 4), nn.ReLU(), linear(4, 2)), (torch.zeros(2, 3),))
    coupling = couple(graph, pinned_nodes={"relu": "removing channels here could not be shown to be exact"})
    assert coupling.groups == ()
    assert [(pin.name, pin.op) for pin in coupling.pinned] == [("0", "aten.relu.default"), ("2", "output")]


# -- components, and what is read from them -------------------------------------------------------------------------


def test_what_is_tied_is_one_component_and_what_is_tied_to_0_is_fixed() -> None:
    """1 = 3 = 4, 2 = 0, and 5 is fixed besides."""
    ties = [(np.array(a), np.array(b)) for a, b in (([1, 2], [3, 0]), ([4], [3]))]
    walk: Any = SimpleNamespace(labels=7, ties=[(torch.from_numpy(a), torch.from_numpy(b), None) for a, b in ties])
    component = find_components(walk, [np.array([5])])
    assert component[[0, 2, 5]].tolist() == [0, 0, 0]
    assert len({*component[[1, 3, 4]].tolist()}) == 1
    assert len({0, component[1], component[6]}) == 3


def test_nothing_tied_is_a_component_for_each() -> None:
    walk: Any = SimpleNamespace(labels=3, ties=[])
    assert sorted(find_components(walk, []).tolist()) == [0, 1, 2]


def two_layers() -> Coupling:
    return coupled(lambda s, x: s.b(F.relu(s.a(x))), a=linear(3, 3), b=linear(3, 2))


def test_an_index_finds_each_component_in_its_group() -> None:
    coupling = two_layers()
    index, channels = coupling.index(), coupling.groups[0].channels
    assert (index.group[channels].tolist(), index.number[channels].tolist()) == ([0, 0, 0], [0, 1, 2])
    assert (index.group[0], index.number[0]) == (-1, -1)
    assert coupling.keep_all().tolist() == [True] * coupling.components == [True] * 4  # what is fixed, and 3 channels


def test_a_small_graph_is_born_with_the_channels_that_are_left() -> None:
    coupling = two_layers()
    first, middle, last = coupling.groups[0].channels
    keep = coupling.keep_all()
    keep[middle] = False
    replay = coupling.born(keep[coupling.component])
    assert {key: axis.tolist() for key, axis in replay.born.items()} == {
        ("a.weight", 0): [first, last],
        ("a.weight", 1): [0, 0, 0],
        ("b.weight", 0): [0, 0],
        ("b.weight", 1): [first, last],
    }


def test_an_axis_whose_length_follows_from_the_batch_is_told() -> None:
    def kernels_of_each_sample(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        kernels = s.b(y.mean((2, 3))).view(-1, 1, 3, 3)
        return F.conv2d(y.reshape(1, -1, 4, 4), kernels, groups=y.shape[0] * 2).mean((0, 2, 3))[None]

    parts: dict[str, Any] = {"a": conv(3, 2), "b": linear(2, 18)}
    assert coupled(kernels_of_each_sample, x=(2, 3, 4, 4), **parts).batch_holds_channels
    assert not two_layers().batch_holds_channels
