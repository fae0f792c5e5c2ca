"""The small graph, by hand: sliced tensors, rewritten sizes, and a dense graph that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.cutting import shrink_graph
from slim_model.cutting.cut import CutFailed, positions_left
from slim_model.cutting.shrink_graph import shrink
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.ops import row_of
from slim_model.simplifying.simplify import simplify
from small_nets import trained


class Net(nn.Module):
    """A linear layer ``a`` of 6 channels, ``between``, and a linear layer ``b`` that reads ``read`` of them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu, read: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(3, 6), nn.Linear(read, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def coupling_of(model: nn.Module, *shape: int) -> Coupling:
    return couple(simplify(trace(trained(model), (torch.randn(shape, generator=torch.Generator().manual_seed(0)),))))


def keeping(coupling: Coupling, *positions: int) -> np.ndarray:
    """The plan that keeps these outputs of layer ``a``, what is tied to them, and all that is not tied to ``a``."""
    rows = next(birth for birth in coupling.births_of("a.weight") if birth.axis == 0)
    channels = coupling.component[rows.start : rows.start + rows.size]
    keep = coupling.keep_all()
    keep[channels] = False
    keep[channels[list(positions)]] = True
    keep[0] = True
    return keep


def node_of(graph: Graph, operator: str) -> fx.Node:
    return next(node for node in graph.nodes if str(node.target).startswith(f"aten.{operator}."))


def small_of(between: Callable[[Tensor], Tensor], *channels: int, read: int = 6) -> Graph:
    coupling = coupling_of(Net(between, read), 2, 3)
    return shrink(coupling, keeping(coupling, *channels))[0]


# -- tensors --------------------------------------------------------------------------------------------------------


def test_the_removed_rows_and_columns_are_gone() -> None:
    coupling = coupling_of(Net(), 2, 3)
    dense, (x,) = coupling.graph.tensors, coupling.graph.inputs
    small, _ = shrink(coupling, keeping(coupling, 0, 2, 5))
    left = [0, 2, 5]
    assert torch.equal(small.tensors["a.weight"], dense["a.weight"][left])
    assert torch.equal(small.tensors["a.bias"], dense["a.bias"][left])
    assert torch.equal(small.tensors["b.weight"], dense["b.weight"][:, left])
    assert small.tensors["b.bias"] is dense["b.bias"]
    hidden = F.relu(x @ dense["a.weight"][left].T + dense["a.bias"][left])
    (got,) = small.run((x,))
    torch.testing.assert_close(got, hidden @ dense["b.weight"][:, left].T + dense["b.bias"])


def test_the_dense_graph_stays_as_it_is() -> None:
    coupling = coupling_of(Net(lambda x: x.view(2, 3, 2).flatten(1)), 2, 3)
    before = str(coupling.graph.module.graph), {name: t.clone() for name, t in coupling.graph.tensors.items()}
    small, _ = shrink(coupling, keeping(coupling, 1))
    assert str(coupling.graph.module.graph) == before[0] != str(small.module.graph)
    assert all(torch.equal(t, before[1][name]) for name, t in coupling.graph.tensors.items())


def test_removing_nothing_changes_nothing() -> None:
    coupling = coupling_of(Net(lambda x: x.view(2, 3, 2).flatten(1)), 2, 3)
    small, _ = shrink(coupling, coupling.keep_all())
    assert str(small.module.graph) == str(coupling.graph.module.graph)
    assert all(small.tensors[name] is tensor for name, tensor in coupling.graph.tensors.items())


def test_a_tensor_under_two_names_stays_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * self.b(x))

    coupling = coupling_of(Tied(), 2, 3)
    small, _ = shrink(coupling, keeping(coupling, 1, 2))
    assert len({id(tensor) for tensor in small.tensors.values()}) == 3  # one weight, and the two tensors of c
    assert len(small.tensors["a.weight"]) == 2


def test_placeholders_have_the_new_shapes() -> None:
    small = small_of(F.relu, 0, 1)
    shapes = {small.owners[n.name]: tuple(n.meta["val"].shape) for n in small.nodes if n.name in small.owners}
    assert shapes == {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (2, 2), "b.bias": (2,)}


def test_the_labels_of_what_is_left_go_with_it() -> None:
    """The walk that checks the small graph starts from them."""
    coupling = coupling_of(Net(), 2, 3)
    _, replay = shrink(coupling, keeping(coupling, 1, 4))
    channels = coupling.groups[0].channels[[1, 4]].tolist()  # of one group, in the order of a's outputs
    assert replay.born["a.weight", 0].tolist() == replay.born["b.weight", 1].tolist() == channels
    assert replay.born["a.weight", 1].tolist() == [0, 0, 0]
    assert replay.choices is coupling.labelled.choices


def test_what_is_left_of_each_axis_is_listed_where_something_went() -> None:
    coupling = coupling_of(Net(), 2, 3)
    left = positions_left(coupling, keeping(coupling, 1, 4))
    assert {key: positions.tolist() for key, positions in left.items()} == {
        ("a.weight", 0): [1, 4],
        ("a.bias", 0): [1, 4],
        ("b.weight", 1): [1, 4],
    }


# -- sizes that stand in the graph ----------------------------------------------------------------------------------


def test_a_view_with_the_size_written_down() -> None:
    """6 channels of one place each; two are left."""
    small = small_of(lambda x: x.view(2, 6), 0, 3)
    assert list(node_of(small, "reshape").args[1]) == [2, 2]


def test_a_view_as_heads_loses_places_within_them() -> None:
    """2 heads of 3 places; the last place of both goes."""
    small = small_of(lambda x: x.view(-1, 2, 3).softmax(1).reshape(-1, 6), 0, 1)
    sizes = [list(n.args[1]) for n in small.nodes if str(n.target) == "aten.reshape.default"]
    assert [size[1:] for size in sizes] == [[2, 2], [4]]


def test_a_split_of_uneven_parts() -> None:
    """Channels 0-1 and 2-5 are two groups; of the second 2 and 5 are left, its first and last."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(2, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.a(x).split([2, 4], 1)
            return self.b(one) + self.c(two)

    coupling = coupling_of(Split(), 2, 3)
    small, _ = shrink(coupling, keeping(coupling, 0, 1, 2, 5))
    assert list(node_of(small, "split_with_sizes").args[1]) == [2, 2]
    assert torch.equal(small.tensors["c.weight"], coupling.graph.tensors["c.weight"][:, [0, 3]])


@pytest.mark.parametrize(
    ("cut", "left", "start", "read"),
    [
        (lambda x: x[:, 2:5], [0, 2, 4, 5], 1, [0, 2]),  # of 2, 3, 4 there are 2 and 4, now at 1 and 2
        (lambda x: x[:, 2:], [0, 1, 5], 2, [3]),  # of 2, 3, 4, 5 there is 5, now at 2
    ],
)
def test_a_slice_begins_and_ends_elsewhere(cut: Any, left: list[int], start: int, read: list[int]) -> None:
    coupling = coupling_of(Net(cut, read=cut(torch.zeros(1, 6)).shape[1]), 2, 3)
    small, _ = shrink(coupling, keeping(coupling, *left))
    (dimension, first, end) = [n.args[1:4] for n in small.nodes if str(n.target) == "aten.slice.Tensor"][-1]
    assert (dimension, first, min(end, len(left))) == (1, start, start + len(read))
    assert torch.equal(small.tensors["b.weight"], coupling.graph.tensors["b.weight"][:, read])


def test_an_index_counts_in_what_is_left() -> None:
    """Channels in the order 5, 0, 3; without 0 and 1 they are at 3 and 1 of 2, 3, 4, 5."""
    order = torch.tensor([5, 0, 3])
    coupling = coupling_of(Net(lambda x: x.index_select(1, order), read=3), 2, 3)
    small, _ = shrink(coupling, keeping(coupling, 2, 3, 4, 5))
    (index,) = [tensor for tensor in small.tensors.values() if not tensor.is_floating_point()]
    assert index.tolist() == [3, 1]


@pytest.mark.parametrize(("groups", "left", "expected"), [(6, [0, 2, 4], 3), (2, [0, 2], 2)])
def test_groups_of_a_convolution(groups: int, left: list[int], expected: int) -> None:
    """Of 6 groups of one channel whole ones go; of 2 groups of 3 the same place of each."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=groups)
            self.c = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x))).mean((2, 3))

    coupling = coupling_of(Grouped(), 2, 3, 2, 2)
    small, _ = shrink(coupling, keeping(coupling, *left))
    grouped = [n for n in small.nodes if str(n.target) == "aten.conv2d.default"][1]
    arguments = grouped.kwargs | dict(
        zip("input weight bias stride padding dilation groups".split(), grouped.args, strict=False)
    )
    assert arguments["groups"] == expected


# -- what cannot be cut ---------------------------------------------------------------------------------------------


def test_a_rewrite_that_fails_names_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(target: Any) -> Any:
        row: Any = row_of(target)
        if "reshape" not in str(target):
            return row

        class Row:
            def rewrite(self, *_: Any) -> Any:
                raise ValueError("no sizes fit")

        return Row()

    monkeypatch.setattr(shrink_graph, "row_of", refusing)
    with pytest.raises(CutFailed) as raised:
        small_of(lambda x: x.view(2, 6), 0, 3)
    assert (raised.value.node, raised.value.reason) == (
        "view",
        "no sizes fit",
    )  # the node has its name from the user's call
