"""Operators that only move values: the operator itself is executed on labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.nodes import arguments_of, packet_of, shape_of
from slim_model.labels.values import Axis, Value, tensors_in
from slim_model.labels.walk import Walk
from slim_model.ops.cut import Cut
from slim_model.ops.row import Op

aten = torch.ops.aten


def move(walk: Walk, **arguments: Any) -> Any:
    """Execute the current node on the labels of each labelled axis and read off where they went."""
    source, *others = tensors_in(arguments.values())
    for other in others:
        walk.pin(other, "its positions are used as data")
    node = walk.node
    count = len(node.meta["val"]) if isinstance(node.meta["val"], list | tuple) else None
    outputs: list[list[Axis]] = [[None] * v.dim() for v in _each(node.meta["val"])]
    # One axis at a time: its labels are spread over the whole tensor, and the operator itself moves them.
    for number, axis in enumerate(source.axes):
        if axis is None:
            continue
        for out, labels in zip(outputs, _each(_execute(node, source, number, axis, arguments)), strict=True):
            if not labels.numel():
                walk.pin(axis, "nothing of it is left for the example input")
                continue
            _place(walk, out, labels)
    if count is None:
        return walk.out(outputs[0])
    for pieces in zip(*outputs, strict=False):
        if None not in pieces:
            walk.splits(pieces)
    return [walk.out(axes, i) for i, axes in enumerate(outputs)]


def _place(walk: Walk, axes: list[Axis], labels: Tensor) -> None:
    """Put labels where they went; an axis that has some already cannot carry others."""
    for where, moved in walk.settle(labels):
        if axes[where] is None:
            axes[where] = moved
        else:
            walk.pin(moved, "two channel axes are merged into one")


def _execute(node: fx.Node, source: Value, number: int, axis: Tensor, arguments: dict[str, Any]) -> Any:
    shape = [1] * len(source.shape)
    shape[number] = len(axis)
    labels = axis.view(shape).expand(source.shape)
    target: Any = node.target
    positional = [a.name for a in target._schema.arguments if not a.kwarg_only]
    rest = [arguments[name] for name in positional[1:]]
    if operator := _ON_LABELS.get(target.overloadpacket):
        return operator(labels, *rest)
    try:
        return target(labels, *rest)
    except (RuntimeError, NotImplementedError):  # no kernel for integers
        return _as_labels(target(labels.double(), *rest))


_ON_LABELS: dict[Any, Any] = dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape_as, aten.view_as), torch.reshape)


def _as_labels(result: Any) -> Any:
    return [r.int() for r in result] if isinstance(result, list | tuple) else result.int()


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


# -- rules for a few operators that cannot be executed as they stand ------------------------------------------------


def shaped_like(walk: Walk, self: Value, other: Value) -> Value:
    """expand_as, view_as: of ``other`` only the sizes are read. They stay those of the result where both lose the same
    positions."""
    moved = move(walk, self=self, other=list(other.shape))
    return walk.out(walk.meet([moved, other], "it is given the sizes of a value whose positions are fixed")[1])


def channel_shuffle(walk: Walk, self: Value, groups: int) -> Value:
    """Channel shuffle (Zhang 2018): every group loses the same positions, so that the shuffle stays a shuffle."""
    axis = self.axes[1]
    if axis is not None:
        rows = axis.reshape(groups, -1)
        walk.tie(rows[:1], rows)
        axis = rows.t().reshape(-1)
    return walk.out((self.axes[0], axis, *self.axes[2:]))


def unfold_patches(walk: Walk, self: Value, kernel_size: list[int], **_: Any) -> Value:
    """im2col: channel c becomes rows c * k .. c * k + k."""
    for axis in self.axes[2:]:
        walk.pin(axis, "patches are cut along it")
    axis = self.axes[1]
    taps = kernel_size[0] * kernel_size[1]
    return walk.out((self.axes[0], None if axis is None else axis.repeat_interleave(taps), None))


def fold_patches(walk: Walk, self: Value, kernel_size: list[int], **_: Any) -> Value:
    """col2im: the k rows of one channel go together."""
    axis = self.axes[1]
    if axis is not None:
        rows = axis.reshape(-1, kernel_size[0] * kernel_size[1])
        walk.tie(rows[:, :1], rows)
        axis = rows[:, 0].contiguous()
    walk.pin(self.axes[2], "patches are summed along it")
    return walk.out((self.axes[0], axis, None, None))


def strided_slice(walk: Walk, self: Value, dim: int, step: int, **rest: Any) -> Any:
    """slice with a step n: n neighbours stay or go together, so that the slice stays as it is written."""
    axis = self.axes[dim]
    if not shape_of(walk.node.meta["val"])[dim]:  # labels of the other axes would not be seen
        walk.pin(axis, "nothing of it is left for the example input")
        return walk.out([None if i == dim % len(self.shape) else a for i, a in enumerate(self.axes)])
    if step != 1 and axis is not None:
        start, stop, _ = slice(rest["start"], rest["end"]).indices(len(axis))
        if start < step and stop == len(axis):
            walk.tie(axis[torch.arange(len(axis)) // step * step], axis)
        else:
            walk.pin(axis, "every n-th channel of a part is taken")
    return move(walk, self=self, dim=dim, **rest, step=step)


def index(walk: Walk, self: Value, indices: list[Any]) -> Value:
    """x[:, constant]: labels are looked up with the real indices; other indices pin the axes they address."""
    node = walk.node
    nodes = arguments_of(node)["indices"]
    addressed = [i for i, n in enumerate(nodes) if n is not None]
    real: list[Any] = [None if n is None else walk.constant(n) for n in nodes]
    first = stored_alone(nodes[addressed[0]])
    own = len(addressed) == 1 and first is not None and first.meta["val"].dim() == 1
    if any(real[i] is None for i in addressed):
        for axis in self.axes[: len(nodes)] if len(addressed) > 1 else [self.axes[i] for i in addressed]:
            walk.pin(axis, "it is indexed by computed values")
    elif not own or real[addressed[0]].dtype == torch.bool:
        for i in addressed:
            walk.pin(self.axes[i], "it is indexed by values that cannot be rewritten")
    for value in tensors_in(indices):
        walk.pin(value, "its positions are used as data")
    outputs: list[Axis] = [None] * node.meta["val"].dim()
    for number, axis in enumerate(self.axes):
        if axis is None or (number in addressed and any(real[i] is None for i in addressed)):
            continue  # pinned above
        shape = [1] * len(self.shape)
        shape[number] = len(axis)
        labels = axis.view(shape).expand(self.shape)
        probes = [
            None if n is None else torch.zeros(i.shape, dtype=torch.long) if r is None else r
            for n, i, r in zip(nodes, indices, real, strict=True)
        ]
        looked_up = aten.index.Tensor(labels, probes)
        if not looked_up.numel():
            walk.pin(axis, "nothing of it is left for the example input")
            continue
        _place(walk, outputs, looked_up)
    return walk.out(outputs)


_AS_STORED = (aten.lift_fresh_copy, aten.lift_fresh, aten.alias, aten.detach, aten.detach_, aten.clone)


def stored_alone(node: fx.Node) -> fx.Node | None:
    """The stored tensor that ``node`` is a copy of, where nothing else reads it."""
    while node.op == "call_function" and packet_of(node) in _AS_STORED:
        if len(node.users) > 1:
            return None
        node = node.all_input_nodes[0]
    return node if node.op == "placeholder" and len(node.users) == 1 else None


def stored_index(node: fx.Node) -> tuple[int, fx.Node | None]:
    """The axis along which ``node`` looks up, and the stored index that nothing else reads; None where it has none."""
    if packet_of(node) not in (aten.index_select, aten.index):
        return 0, None
    given = arguments_of(node)
    indices = enumerate(given["indices"]) if "indices" in given else [(given["dim"], given["index"])]
    along = [(dim, index) for dim, index in indices if index is not None]
    return along[0][0], stored_alone(along[0][1]) if len(along) == 1 else None


PLACES = "places"
"""Marks a look-up that puts channels at their places in the dense model ("spread": zero, which stands at the end, where
one is gone), or that takes those that are left from there ("collect")."""


def index_select(walk: Walk, self: Value, dim: int, index: Value) -> Value:
    """A look-up by a stored constant, of which the small graph keeps the entries that are left."""
    node = arguments_of(walk.node)["index"]
    axes = list(self.axes)
    axis = axes[dim]
    if walk.node.meta.get(PLACES) == "collect":
        axes[dim] = index.axes[0]
        return walk.out(axes)
    walk.pin(index, "its positions are used as data")
    if walk.node.meta.get(PLACES) == "spread":
        walk.reads(axis)
        axes[dim] = None
    elif axis is not None:
        found = walk.constant(node)
        axes[dim] = None if found is None or stored_alone(node) is None else axis[found]
        if found is None:
            walk.pin(axis, "it is indexed by computed values")
        elif axes[dim] is None:
            walk.pin(axis, "it is indexed by values that cannot be rewritten")
    return walk.out(axes)


def gather(walk: Walk, self: Value, dim: int | None, **rest: Any) -> Value:
    """A look-up along ``dim``, at each place of the other axes by an index of its own: channels there pass, where the
    index has as many (an index that is expanded may lose any)."""
    (index,) = tensors_in(rest.values())
    if dim is None:
        for value in (self, index):
            walk.pin(value, "all its values are used together")
        return walk.fixed_outputs()  # type: ignore[no-any-return]
    along = dim % max(1, len(self.shape))
    if self.axes:
        walk.pin(self.axes[along], "it is indexed by computed values")
        walk.pin(index.axes[along], "its positions are used as data")
    axes: list[Axis] = []
    # Of each axis: an index as long as it follows its channels; a shorter one reads some of them by position.
    for i, mine in enumerate(self.axes):
        looks = walk.choose(partial(_looked_up, walk.node, i == along, self.shape[i], index.shape[i]))
        if looks == "all":
            axes.append(walk.agree([mine, index.axes[i]], "it is combined with a value whose positions are fixed"))
            continue
        axes.append(mine if looks == "alike" else None)
        if looks == "some":
            walk.pin(mine, "its positions are used as data")
            walk.pin(index.axes[i], "its positions are used as data")
    return walk.out(axes)


def _looked_up(node: fx.Node, along: bool, size: int, indices: int) -> str:
    """What of an axis is looked up: "all" positions, each by an index of its own; all "alike"; "some" of them, the
    first ones; or "other" ones, where it is the axis that the index counts in. Small graphs follow the dense one."""
    if along:
        return "other"
    if size == indices:
        return "all"
    return "alike" if indices == 1 and packet_of(node) is aten.take_along_dim else "some"


def reindex_select(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["self"]]
    if node.meta.get(PLACES) == "spread":
        kept = cut.kept(source.axes[arguments["dim"]], source.shape[arguments["dim"]])
        left = kept.cumsum(0) - 1
        return {"stored": {cut.graph.owners[arguments["index"].name]: torch.where(kept, left, left[-1])[:-1]}}
    return {"stored": _remap(cut, arguments["index"], source, arguments["dim"])}


# -- constants in the small graph -----------------------------------------------------------------------------------


def rewrite_sizes(name: str = "size", start: str | None = None) -> Any:
    """Rewrite a list of sizes from what is kept of each axis of the output."""

    def rewrite(cut: Cut, node: fx.Node) -> dict[str, Any]:
        arguments = arguments_of(node)
        sizes = list(arguments[name])
        value: Value = cut.values[node]
        first = 0 if start is None else arguments[start] % len(cut.values[arguments["self"]].shape)
        for i in range(len(sizes)):
            # Only a size that loses channels changes; -1 follows by itself.
            axis = value.axes[first + i]
            kept = cut.count(axis, value.shape[first + i])
            if axis is None or kept == value.shape[first + i] or sizes[i] == -1:
                continue
            if isinstance(sizes[i], int):
                sizes[i] = kept
            # A size that is computed elsewhere cannot be written as a number: one of them may be what is left over.
            elif -1 not in sizes:
                sizes[i] = -1
            else:
                raise ValueError("two sizes of this view follow from other sizes")
        return {name: sizes}

    return rewrite


def reslice(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["self"]]
    axis, size = source.axes[arguments["dim"]], source.shape[arguments["dim"]]
    kept = cut.kept(axis, size)
    if axis is None or kept.all() or arguments["step"] != 1:
        return {}
    start, stop, _ = slice(arguments["start"], arguments["end"]).indices(size)
    return {"start": int(kept[:start].sum()), "end": int(kept[: max(start, stop)].sum())}


def renarrow(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["self"]]
    axis, size = source.axes[arguments["dim"]], source.shape[arguments["dim"]]
    if axis is None:
        return {}
    kept, start = cut.kept(axis, size), arguments["start"]
    return {"start": int(kept[:start].sum()), "length": int(kept[start : start + arguments["length"]].sum())}


def reselect(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["self"]]
    axis, size = source.axes[arguments["dim"]], source.shape[arguments["dim"]]
    return {} if axis is None else {"index": int(cut.kept(axis, size)[: arguments["index"] % size].sum())}


def resplit(cut: Cut, node: fx.Node) -> dict[str, Any]:
    """Pieces may now differ in size: chunk and split become split_with_sizes."""
    arguments = arguments_of(node)
    dim = arguments["dim"]
    source: Value = cut.values[arguments["self"]]
    if source.axes[dim] is None:
        return {}
    sizes = [cut.count(piece.axes[dim], piece.shape[dim]) for piece in cut.values[node]]
    return {"target": aten.split_with_sizes.default, "self": arguments["self"], "split_sizes": sizes, "dim": dim}


def reroll(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["self"]]
    shifts = list(arguments["shifts"])
    for i, dim in enumerate(arguments["dims"]):
        if (axis := source.axes[dim]) is not None:
            size = source.shape[dim]
            shifts[i] = int(cut.kept(axis, size)[size - shifts[i] % size :].sum()) if shifts[i] % size else 0
    return {"shifts": shifts}


def reindex(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    stored: dict[str, Tensor] = {}
    for dim, index_node in enumerate(arguments["indices"]):
        if index_node is not None:
            stored |= _remap(cut, index_node, cut.values[arguments["self"]], dim)
    return {"stored": stored}


def _remap(cut: Cut, index_node: fx.Node, source: Value, dim: int) -> dict[str, Tensor]:
    """By name: the index constant with the entries that stay, counted in kept positions."""
    stored = stored_alone(index_node)
    if source.axes[dim] is None or stored is None or stored.name not in cut.graph.owners:
        return {}
    kept = cut.kept(source.axes[dim], source.shape[dim])
    owner = cut.graph.owners[stored.name]
    entries = cut.graph.tensors[owner] % source.shape[dim]
    return {owner: (kept.cumsum(0) - 1)[entries[kept[entries]]]}


def reinterpreted(walk: Walk, self: Value, **_: Any) -> Any:
    walk.pin(self, "its bytes are read as another type")
    return walk.fixed_outputs()


def _rearranges(*operators: Any, rewrite: Any = None, kind: Any = None) -> dict[Any, Op]:
    return dict.fromkeys(operators, Op(move, rewrite=rewrite, kind=kind, effect="rearranges"))


def _moves(*operators: Any, rewrite: Any = None, kind: Any = None) -> dict[Any, Op]:
    return dict.fromkeys(operators, Op(move, rewrite=rewrite, kind=kind, effect="moves"))


ROWS: dict[Any, Op] = {
    **_rearranges(aten.view, aten._unsafe_view, rewrite=rewrite_sizes(), kind="view"),
    **_rearranges(aten.reshape, rewrite=rewrite_sizes("shape"), kind="view"),
    **_rearranges(aten.unflatten, rewrite=rewrite_sizes("sizes", "dim"), kind="unflatten"),
    **_rearranges(aten.flatten, aten.ravel, aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.mT, aten.adjoint),
    **_rearranges(aten.movedim, aten.swapaxes, aten.swapdims, aten.squeeze, aten.unsqueeze, aten.atleast_1d),
    aten.squeeze.default: Op(move, effect="moves"),  # sizes say which axes go
    aten.view.dtype: Op(reinterpreted),
    **dict.fromkeys((aten.reshape_as, aten.view_as), Op(shaped_like, effect="moves")),
    **dict.fromkeys((aten.channel_shuffle, aten.native_channel_shuffle), Op(channel_shuffle, effect="rearranges")),
    **_moves(aten.narrow, rewrite=renarrow),
    **_moves(aten.select, rewrite=reselect, kind="select"),
    **_moves(aten.unbind, kind="unbind"),
    **_moves(aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split, rewrite=resplit, kind="split"),
    **_moves(aten.roll, rewrite=reroll),
    **_moves(aten.flip, aten.fliplr, aten.flipud, aten.rot90, aten.tile, aten.repeat_interleave, aten.diagonal),
    **_moves(aten.pixel_shuffle, aten.pixel_unshuffle, aten.unfold),
    aten.slice: Op(strided_slice, rewrite=reslice, effect="moves"),
    aten.index: Op(index, rewrite=reindex, effect="moves"),
    **dict.fromkeys((aten.gather, aten.take_along_dim), Op(gather, effect="moves")),
    aten.index_select: Op(index_select, rewrite=reindex_select, effect="moves"),
    aten.im2col: Op(unfold_patches, effect="moves"),
    aten.col2im: Op(fold_patches),
}
