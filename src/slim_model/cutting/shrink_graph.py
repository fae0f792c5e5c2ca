"""A dense graph and the channels to keep -> the small graph.

It is the ground truth: every stored tensor is sliced, and every size that was baked into the graph is rewritten.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import CutFailed, cut_of
from slim_model.errors import ensure, first_line
from slim_model.graph.decisions import Decision
from slim_model.graph.graph import Graph, copy_graph
from slim_model.graph.nodes import arguments_of
from slim_model.graph.promises import whole
from slim_model.labels.values import Replay, tensors_in
from slim_model.ops import Cut, Fraction, row_of


def shrink(coupling: Coupling, keep: np.ndarray) -> tuple[Graph, Replay]:
    """Cut the dense graph down to the channels ``keep`` (bool by component).

    Returns the small graph, and the labels that its stored tensors carry, from which the walk that checks it starts.
    Raises CutFailed, which names the node that cannot be made smaller.
    """
    dense, cut = coupling.graph, cut_of(coupling, keep)
    graph, copies = copy_graph(dense.module.graph)
    constants: dict[str, Tensor] = {}  # indices, which count in the positions that are left
    for node, small in copies.items():
        if node.op == "call_function":
            constants |= _rewrite(cut, node, small, copies)
    firsts = {owner: coupling.labelled.shared.get(owner, owner) for owner in dense.tensors}
    sliced = {first: _sliced(coupling, cut, first) for first in dict.fromkeys(firsts.values())}
    tensors = {owner: sliced[first] for owner, first in firsts.items()} | constants
    for node, small in copies.items():
        if node.op == "placeholder" and node.name in dense.owners:
            _retype(small, tensors[dense.owners[node.name]])
    module = fx.GraphModule(dense.module, graph)
    decisions = {n.name: _decided(cut, n) for n in copies if n.name in dense.decisions}
    replay = coupling.born(cut.keep)
    unlabelled = {(owner, 0): torch.zeros(len(tensor), dtype=torch.int32) for owner, tensor in constants.items()}
    replay = dataclasses.replace(replay, born=replay.born | unlabelled)
    result = dataclasses.replace(dense, module=module, tensors=tensors, decisions=decisions)
    _check(coupling, result, replay, without=constants)
    return result, replay


def _check(coupling: Coupling, small: Graph, replay: Replay, *, without: Collection[str]) -> None:
    """Every stored tensor has the channels that are left of it, on every axis, and so has the walk that checks them.
    ``without``: constants that are no longer a part of the dense ones."""
    whole(small, "shrink")
    for owner, tensor in small.tensors.items():
        if owner in without:
            continue
        left = list(coupling.graph.tensors[owner].shape)
        for birth in coupling.births_of(owner):
            left[birth.axis] = len(replay.born[birth.owner, birth.axis])
        ensure(list(tensor.shape) == left, "shrink", f"'{owner}' is {list(tensor.shape)}, and {left} are left of it")


def _decided(cut: Cut, node: fx.Node) -> Decision:
    """What the dense graph decides at ``node``, for the channels that are left."""
    values = tensors_in([cut.values[node]])
    whole = cut.graph.decisions[node.name]
    return tuple(None if x is None else cut.gathered(x, v) for x, v in zip(whole, values, strict=True))


def _rewrite(cut: Cut, node: fx.Node, small: fx.Node, copies: dict[fx.Node, fx.Node]) -> dict[str, Tensor]:
    """Give ``small``, the copy of ``node``, its new arguments; returns the stored constants that change, by name."""
    row = row_of(node.target)
    if row is None or row.rewrite is None:
        return {}
    touched = tensors_in([cut.values[n] for n in node.all_input_nodes] + [cut.values[node]])
    # Where nothing is cut the node stays as it is, whatever its row could not rewrite.
    if not any(cut.cuts(value) for value in touched):
        return {}
    try:
        changed = row.rewrite(cut, node)
    except (ValueError, TypeError, KeyError) as error:
        raise CutFailed(node.name, first_line(error)) from error
    constants: dict[str, Tensor] = changed.pop("stored", {})
    if not changed:
        return constants
    target = changed.pop("target", None)
    # Another operator has arguments of its own; the same one keeps those that do not change.
    arguments = changed if target else arguments_of(node) | changed
    small.target = target or node.target
    required = {a.name for a in small.target._schema.arguments if not a.kwarg_only}  # type: ignore[union-attr]
    # Sizes that a node computed at the dense width become numbers; the rest refers to the copies.
    arguments = {name: _number(node, given, copies) for name, given in arguments.items()}
    arguments = fx.map_arg(arguments, lambda n: copies.get(n, n))
    small.args = tuple(v for k, v in arguments.items() if k in required)
    small.kwargs = {k: v for k, v in arguments.items() if k not in required}
    return constants


def _number(node: fx.Node, given: Any, copies: dict[fx.Node, fx.Node]) -> Any:
    """A ``Fraction`` of a product is the product with a smaller factor; anything else is what it is."""
    if not isinstance(given, Fraction):
        return given
    number, factors = given.number, [n for n in given.number.args if isinstance(n, int)]
    if number.target is not operator.mul or len(factors) != 1 or factors[0] * given.left % given.whole:
        raise CutFailed(node.name, "how many groups it has follows from other sizes")
    factor = factors[0] * given.left // given.whole
    small = copies[number]
    small.args = tuple(factor if isinstance(n, int) else n for n in small.args)
    small.meta["val"] = number.meta["val"] * given.left // given.whole
    return number


def _sliced(coupling: Coupling, cut: Cut, owner: str) -> Tensor:
    tensor = coupling.graph.tensors[owner]
    for birth in coupling.births_of(owner):
        labels = np.arange(birth.start, birth.start + birth.size)
        kept = torch.from_numpy(np.flatnonzero(cut.keep[labels]))
        if len(kept) < birth.size:
            tensor = tensor.detach().index_select(birth.axis, kept.to(tensor.device))
    return tensor


def _retype(node: fx.Node, tensor: Tensor) -> None:
    """Give a placeholder the shape of the sliced tensor it now stands for."""
    old = node.meta.get("val")
    if not isinstance(old, Tensor) or tuple(old.shape) == tuple(tensor.shape):
        return
    mode = getattr(old, "fake_mode", None)
    if mode is None:
        node.meta["val"] = tensor
    else:
        with mode:
            node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    node.meta.pop("tensor_meta", None)
