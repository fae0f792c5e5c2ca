"""Rewrite a graph so that channels can be seen and removed; it computes exactly the same.

A channel shuffle written as view, transpose, view becomes one look-up by a constant. Seen as views, a shuffle (Zhang
2018) ties every block of channels to every other, and stacked shuffles tie nearly all of them. Seen as a permutation
it ties nothing: the small graph looks up the channels that are left.

What the forward checks of values (``dist = Normal(mean, scale)`` wants a scale above 0) is no part of what it computes,
and channels that are zero would fail it.

A weight that the forward computes from parameters alone becomes a stored one (``fold_weights``).

What the forward computes from numbers alone (positions, angles of rotary embeddings) becomes a stored tensor, which
is sliced like a parameter.

A batch norm without running statistics is written as the operator that says so: it is also how weights are standardised
(Qiao 2019), where its mean and variance run over the filter's inputs.

Look-ups and writes by constant indices become ``index_select`` (``constant_indices``), through which channels can be
followed.

A slice that takes a whole axis is what it is taken of. Written to in place (``x[:, :n] += y``, GhostNet) it would be a
scatter in the ONNX file.

A fused projection is cut before it is viewed as queries, keys and values (``fused_projections``).

A view becomes a reshape: that it needs no copy holds for the layout of the traced run. For other widths other kernels
are taken, which lay out what they give otherwise (attention), and for a picture that lies channels last, ``contiguous``
is not in the trace.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of, packet_of, shape_of
from slim_model.graph.promises import whole
from slim_model.graph.stored_tensors import add_placeholder, computed_from, cone_of, is_pure, is_written, values_of
from slim_model.ops import kind_of
from slim_model.simplifying.constant_indices import write_as_look_ups
from slim_model.simplifying.fold_weights import fold_weights
from slim_model.simplifying.fused_projections import unfuse
from slim_model.simplifying.moves import move_labels, only_moves

aten = torch.ops.aten
_LONGEST = 6
_LARGEST = 2**20  # elements of a stored tensor; a larger one stays computed


def simplify(graph: Graph) -> Graph:
    """A copy of ``graph``: checks of values are left out, weights that follow from parameters alone and other constants
    are folded, BatchNorms in batch-statistics mode are marked as such, channel shuffles become ``index_select``, fused
    qkv projections are split, and ``view`` becomes ``reshape``."""
    graph = graph.copy()  # each step edits the nodes of this copy
    _leave_out_checks(graph)
    _leave_out_whole_slices(graph)
    graph = fold_weights(graph)  # first: what is folded need not be looked at
    _mark_batch_statistics(graph)
    graph = _fold_constants(graph)
    graph = _with(graph, *write_as_look_ups(graph))
    graph = _look_up_shuffles(graph)  # before projections: a shuffle before a chunk is a chain of views that is cut
    unfuse(graph.module.graph)
    _reshape_views(graph)  # last: the steps before look for views
    graph.module.recompile()
    return whole(graph, "simplify")


# -- checks of values ------------------------------------------------------------------------------------------------


def _leave_out_checks(graph: Graph) -> None:
    """``_assert_async``, which an exported program has where a forward checks values, and what is computed for it."""
    checks = [node for node in graph.nodes if packet_of(node) is aten._assert_async]
    checked = {node for check in checks for node in cone_of(check)}
    for node in reversed(list(graph.nodes)):
        for_check = kind_of(node) == "assertion" and checked.issuperset(node.all_input_nodes)
        if node in checks or for_check or (node in checked and not node.users and is_pure(node)):
            graph.module.graph.erase_node(node)


def _leave_out_whole_slices(graph: Graph) -> None:
    for node in list(graph.nodes):
        # What the model returns stays a value of its own.
        if packet_of(node) is aten.slice and _takes_all(node) and all(user.op != "output" for user in node.users):
            (source,) = node.all_input_nodes
            node.replace_all_uses_with(source)
            graph.module.graph.erase_node(node)


def _takes_all(node: fx.Node) -> bool:
    given = arguments_of(node)
    size, start, end = given["self"].meta["val"].shape[given["dim"]], given["start"], given["end"]
    whole_end = end is None or (isinstance(end, int) and end >= (size if isinstance(size, int) else sys.maxsize))
    return (start is None or start == 0) and given["step"] == 1 and whole_end


# -- numbers the forward computes -----------------------------------------------------------------------------------


def _fold_constants(graph: Graph) -> Graph:
    known = _known(graph)
    tensors: dict[str, Tensor] = {}
    for node, value in known.items():
        if node.op == "call_function" and _worth_storing(value) and any(user not in known for user in node.users):
            constant = add_placeholder(graph, f"computed_{len(tensors)}", value, node)
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in known)
            tensors[constant.name] = value
    return _with(graph, tensors, [node for node in known if node.op == "call_function"])


def _worth_storing(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return 1 < value.numel() <= _LARGEST and bool((value != value.flatten()[0]).any())


def _known(graph: Graph) -> dict[fx.Node, Any]:
    """Values that follow from numbers in the graph alone, and are never written to."""
    literals = graph.program.graph_signature.lifted_tensor_constants if graph.program else ()
    given = computed_from(graph, lambda node: node.op == "placeholder" and graph.owners.get(node.name) in literals)
    return values_of(graph, given)


# -- norms by the statistics of what is at hand ---------------------------------------------------------------------


def _mark_batch_statistics(graph: Graph) -> None:
    nodes = graph.module.graph
    for node in nodes.nodes:
        if node.target is not aten.batch_norm.default:
            continue
        given = arguments_of(node)
        if not given["training"] or given["running_mean"] is not None:
            continue
        args = (given["input"], given["weight"], given["bias"], True, given["momentum"], given["eps"])
        with nodes.inserting_before(node):
            normed = nodes.call_function(aten._native_batch_norm_legit.no_stats, args)
        values, _ = fx.map_arg((args, {}), lambda n: n.meta["val"])
        normed.meta = node.meta | {"val": normed.target(*values)}  # type: ignore[operator]
        node.target, node.args, node.kwargs = operator.getitem, (normed, 0), {}


# -- channel shuffles -----------------------------------------------------------------------------------------------


def _look_up_shuffles(graph: Graph) -> Graph:
    nodes = graph.module.graph
    shuffles = []
    done: set[fx.Node] = set()
    for node in nodes.nodes:
        if node not in done and only_moves(node) and (shuffle := _permutation(node)):
            done.update(shuffle[0])
            shuffles.append(shuffle)
    tensors: dict[str, Tensor] = {}
    for number, (chain, axis, order) in enumerate(shuffles):
        constant = add_placeholder(graph, f"channel_order_{number}", order, chain[-1])
        with nodes.inserting_after(chain[-1]):
            look_up = nodes.call_function(aten.index_select.default, (chain[0].args[0], axis, constant))
        look_up.meta = dict(chain[-1].meta)
        chain[-1].replace_all_uses_with(look_up)
        tensors[constant.name] = order
    return _with(graph, tensors, [node for chain, _, _ in shuffles for node in chain])


def _permutation(start: fx.Node) -> tuple[list[fx.Node], int, Tensor] | None:
    """The chain from ``start`` that permutes one axis of its input and nothing else: (nodes, axis, order)."""
    source = start.args[0]
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return None
    shape = shape_of(source.meta["val"])
    chain = [start]
    while len(chain) <= _LONGEST:
        end = chain[-1]
        whole = len(chain) > 2 or end.target is aten.channel_shuffle.default
        if whole and shape_of(end.meta["val"]) == shape and (order := _order(chain, shape)):
            fixed = isinstance(
                source.meta["val"].shape[order[0]], int
            )  # a height that is free has other places elsewhere
            return (chain, *order) if fixed else None
        users = list(end.users)
        if len(users) != 1 or not only_moves(users[0]) or users[0].args[0] is not end:
            return None
        chain.append(users[0])
    return None


def _order(chain: list[fx.Node], shape: tuple[int, ...]) -> tuple[int, Tensor] | None:
    permuted = None
    for axis, size in enumerate(shape):
        line = torch.arange(size, dtype=torch.int32).view([-1 if a == axis else 1 for a in range(len(shape))])
        moved = move_labels(chain, line.expand(shape))
        row = moved
        for other in range(len(shape) - 1, -1, -1):
            row = row if other == axis else row.select(other, 0)
        if not torch.equal(row.view_as(line).expand(shape), moved):
            return None
        if not torch.equal(row, line.reshape(-1)):
            if permuted is not None or axis == 0:
                return None
            permuted = axis, row.long().contiguous()
    return permuted


# -- views ----------------------------------------------------------------------------------------------------------


def _reshape_views(graph: Graph) -> None:
    for node in graph.module.graph.nodes:
        if node.target is aten.view.default and not is_written(node.args[0]):
            node.target = aten.reshape.default


# -- both -----------------------------------------------------------------------------------------------------------


def _with(graph: Graph, tensors: dict[str, Tensor], unused: list[fx.Node]) -> Graph:
    """``graph`` with these stored tensors, without those of the nodes that nothing reads any more."""
    if not tensors:
        return graph
    for node in reversed(unused):
        if not node.users:
            graph.module.graph.erase_node(node)
    owners = graph.owners | {name: name for name in tensors}
    return dataclasses.replace(graph, owners=owners, tensors=graph.tensors | tensors)
