"""Operators that treat each position alone, and those that join tensors along an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slim_model.graph.nodes import arguments_of
from slim_model.labels.values import Axis, Value, tensors_in
from slim_model.labels.walk import Walk
from slim_model.ops import layer
from slim_model.ops.cut import Cut
from slim_model.ops.row import Curve, Op
from slim_model.ops.training_switch import TrainingSwitch

aten = torch.ops.aten


def pointwise(walk: Walk, **arguments: Any) -> Value:
    """Operands are tied where they line up; a full-size operand without channels fixes the other."""
    _, axes = walk.meet(tensors_in(arguments.values()), "it is combined with a value whose positions are fixed")
    rank = walk.node.meta["val"].dim()
    return walk.out(axes[len(axes) - rank :])


def cat(walk: Walk, tensors: list[Value], dim: int = 0) -> Value:
    tensors = [t for t in tensors if t.shape != (0,)] or tensors
    rank = len(tensors[0].shape)
    dim %= rank
    axes: list[Axis] = [
        walk.agree([t.axes[a] for t in tensors], "it is joined with a value whose positions are fixed")
        for a in range(rank)
        if a != dim
    ]
    axes.insert(dim, _joined([(t.axes[dim], t.shape[dim]) for t in tensors]))
    return walk.out(axes)


def stack(walk: Walk, tensors: list[Value], dim: int = 0) -> Value:
    rank = len(tensors[0].shape)
    axes: list[Axis] = [
        walk.agree([t.axes[a] for t in tensors], "it is stacked with a value whose positions are fixed")
        for a in range(rank)
    ]
    axes.insert(dim % (rank + 1), None)
    return walk.out(axes)


def _joined(parts: list[tuple[Axis, int]]) -> Axis:
    if all(axis is None for axis, _ in parts):
        return None
    return torch.cat([torch.zeros(n, dtype=torch.int32) if axis is None else axis for axis, n in parts])


def pad(walk: Walk, self: Value, pad: list[int], mode: str = "constant", **_: Any) -> Value:
    """Constant padding of a channel axis creates channels; other modes copy positions and fix the axis."""
    axes = list(self.axes)
    for i in range(0, len(pad), 2):
        dim = len(axes) - 1 - i // 2
        axis, low, high = axes[dim], pad[i], pad[i + 1]
        if axis is None or (low == 0 and high == 0):
            continue
        if mode != "constant" or low < 0 or high < 0:
            walk.pin(axis, "it is padded with its own values")
            axes[dim] = None
        else:
            created = walk.fresh(low + high, axis=dim)
            if created is None:  # one channel only: it stays
                created = torch.zeros(low + high, dtype=torch.int32)
            axes[dim] = torch.cat([created[:low], axis, created[low:]])
    return walk.out(axes)


def repad(cut: Cut, node: fx.Node) -> dict[str, Any]:
    """Rewrite the numbers of padded channels."""
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["self"]]
    value: Value = cut.values[node]
    sizes = list(arguments["pad"])
    for i in range(0, len(sizes), 2):
        dim = len(source.axes) - 1 - i // 2
        axis = value.axes[dim]
        if axis is None or not (sizes[i] or sizes[i + 1]):
            continue
        kept = cut.kept(axis, value.shape[dim])
        sizes[i], sizes[i + 1] = int(kept[: sizes[i]].sum()), int(kept[len(kept) - sizes[i + 1] :].sum())
    return {"pad": sizes}


def glu(walk: Walk, self: Value, dim: int = -1) -> Value:
    """Gated linear unit: position i of the first half goes with position i of the second."""
    axes = list(self.axes)
    axis = axes[dim]
    if axis is not None:
        half = axis.reshape(2, -1)
        walk.tie(half[0], half[1])
        axes[dim] = half[0].contiguous()
    return walk.out(axes)


def prelu(walk: Walk, self: Value, weight: Value) -> Value:
    axes = list(self.axes)
    if weight.shape != (1,) and weight.shape != () and len(axes) > 1:
        axes[1] = walk.agree([axes[1], weight.axes[0]], "its slopes are fixed")
    return walk.out(axes)


def unchecked(walk: Walk, a: Value, size: Any = None, stride: Any = None, **_: Any) -> None:
    """_assert_tensor_metadata: a check of type and device, which ``.to`` leaves in the graph."""
    if size is not None or stride is not None:
        walk.pin(a, "its size is checked")


def several(walk: Walk, **arguments: Any) -> list[Value]:
    """native_dropout gives the values, and the mask of those that stay; broadcast_tensors each tensor at the shape of
    all."""
    _, axes = walk.meet(tensors_in(arguments.values()), "it is combined with a value whose positions are fixed")
    return [walk.out(axes, i) for i in range(len(walk.node.meta["val"]))]


def _alone(**columns: Any) -> Op:
    """A row of an operator that treats each position alone."""
    return Op(pointwise, effect="pointwise", **columns)


def _like_relu(curve: Curve, layer_kind: str = "", **columns: Any) -> Op:
    return _alone(curve=curve, layer=layer.elementwise(layer_kind) if layer_kind else None, **columns)


POINTWISE = _alone()
"""The row of an operator that PyTorch tags as pointwise and that has none of its own."""

_DROPOUT = TrainingSwitch("train", rate="p")
_UNTAGGED = (
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like),
    *(aten.randn_like, aten.where, aten.masked_fill, aten.softplus, aten.threshold, aten.nan_to_num),
    *(aten.fill, aten.copy, aten.__and__, aten.__or__, aten.__xor__, aten.zero, aten.log_sigmoid),
    aten.hardsigmoid,
)
"""Those that PyTorch does not tag in every overload."""
_STEPS = (*(aten.floor, aten.ceil, aten.round, aten.trunc, aten.sign, aten.remainder, aten.fmod, aten.floor_divide),)

ROWS: dict[Any, Op] = {
    aten.cat: Op(cat, kind="join", effect="moves"),
    aten.concat: Op(cat, kind="join", effect="moves"),
    aten.stack: Op(stack, kind="join", effect="moves"),
    aten.pad: Op(pad, rewrite=repad, effect="moves"),
    aten.constant_pad_nd: Op(pad, rewrite=repad, effect="moves"),
    aten.glu: Op(glu),
    aten.max.other: _alone(),
    aten.min.other: _alone(),
    **dict.fromkeys(_UNTAGGED, _alone()),
    aten.expand_as: Op(pointwise, effect="moves"),
    aten.broadcast_tensors: Op(several, effect="moves"),
    # copies
    **dict.fromkeys((aten.clone, aten.contiguous, aten.alias, aten.detach, aten.lift_fresh), _alone(kind="copy")),
    aten.lift_fresh_copy: _alone(kind="copy"),
    aten.to: _alone(kind="cast"),
    aten._to_copy: _alone(kind="cast"),
    aten.type_as: _alone(kind="cast", returns_operand=True),
    # checks that the graph makes: of type and device, which .to leaves in it, and of sizes
    **dict.fromkeys(
        (aten._assert_tensor_metadata, aten._assert_scalar, aten.sym_constrain_range_for_size),
        Op(unchecked, kind="assertion"),
    ),
    # arithmetic
    aten.add: _alone(kind="addition"),
    **dict.fromkeys((aten.sub, aten.rsub), _alone(kind="subtraction")),
    aten.mul: _alone(layer=layer.elementwise("mul"), kind="arithmetic"),
    **dict.fromkeys((aten.div, aten.true_divide), _alone(kind="division")),
    **dict.fromkeys((aten.rsqrt, aten.reciprocal), _alone(kind="inverse")),
    aten.pow: _alone(kind="power"),
    **dict.fromkeys((aten.sqrt, aten.square, aten.neg, aten.abs), _alone(kind="arithmetic")),
    **dict.fromkeys((aten.clamp, aten.clamp_min, aten.maximum), _alone(kind="arithmetic")),
    **dict.fromkeys(_STEPS, _alone(curve="steps")),
    # activations
    aten.relu: _like_relu("rectifier", kind="relu"),
    aten.relu6: _like_relu("rectifier"),
    aten.hardtanh: _like_relu("rectifier"),  # as which ReLU6 is traced
    aten.hardswish: _like_relu("rectifier", "hardswish"),
    aten.silu: _like_relu("leaky", "silu"),
    aten.gelu: _like_relu("leaky", "gelu"),
    aten.mish: _like_relu("leaky"),
    aten.leaky_relu: _like_relu("leaky"),
    aten.rrelu: _like_relu("leaky", training_switch=TrainingSwitch("training")),
    aten.prelu: Op(prelu, effect="pointwise", curve="leaky"),
    aten.elu: _like_relu("saturating"),
    aten.celu: _like_relu("saturating"),
    aten.selu: _like_relu("saturating"),
    # dropout
    **dict.fromkeys(
        (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout),
        _alone(kind="dropout", training_switch=_DROPOUT, returns_operand=True),
    ),
    aten.native_dropout: Op(several, kind="dropout", training_switch=_DROPOUT),
}
