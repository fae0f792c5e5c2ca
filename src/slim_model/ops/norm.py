"""Normalisation. Statistics over a channel axis run over the channels that are kept (docs/correctness.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slim_model.graph.nodes import arguments_of
from slim_model.labels.values import Flow, Value
from slim_model.labels.walk import Walk
from slim_model.ops import layer
from slim_model.ops.cut import Cut
from slim_model.ops.row import Op
from slim_model.ops.training_switch import TrainingSwitch

aten = torch.ops.aten
_FIXED = "its normalisation is fixed"


def batch_norm(walk: Walk, input: Value, **rest: Any) -> Value:
    """Each channel alone: scale, shift and running statistics go with it."""
    axes = list(input.axes)
    owned = [v.axes[0] for v in rest.values() if isinstance(v, Value)]
    axes[1] = walk.agree([axes[1], *owned], _FIXED)
    return walk.out(axes)


def instance_norm(walk: Walk, input: Value, **rest: Any) -> Value:
    for axis in input.axes[2:]:
        walk.pin(axis, "it is normalised over it")
    return batch_norm(walk, Value(input.shape, (*input.axes[:2], *[None] * (len(input.shape) - 2))), **rest)


def layer_norm(walk: Walk, input: Value, normalized_shape: list[int], **rest: Any) -> Value:
    """The last axes are normalised over; weight and bias have exactly these axes."""
    first = len(input.shape) - len(normalized_shape)
    owned = [v for v in rest.values() if isinstance(v, Value)]
    axes = list(input.axes)
    for i in range(len(normalized_shape)):
        axes[first + i] = walk.agree([axes[first + i], *(v.axes[i] for v in owned)], _FIXED)
    return walk.out(axes)


def reshape_norm(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["input"]]
    return {"normalized_shape": list(cut.shape(source)[-len(arguments["normalized_shape"]) :])}


def group_norm(walk: Walk, input: Value, num_groups: int, **rest: Any) -> Value:
    """Channels fall into ``num_groups`` blocks, each with its own statistics."""
    owned = [v.axes[0] for v in rest.values() if isinstance(v, Value)]
    axis = walk.agree([input.axes[1], *owned], _FIXED)
    if axis is not None:
        walk.blocks((axis,), num_groups)
    for other in input.axes[2:]:
        walk.pin(other, "it is normalised over it")
    return walk.out((input.axes[0], axis, *[None] * (len(input.shape) - 2)))


def regroup_norm(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    source: Value = cut.values[arguments["input"]]
    if not cut.choices[node.name] or not cut.choices[node.name][0]:
        return {}
    return {"num_groups": cut.count(source.axes[1], source.shape[1]) * arguments["num_groups"] // source.shape[1]}


def weight_norm(walk: Walk, v: Value, g: Value, dim: int = 0) -> Value:
    """g * v / ||v||, the norm taken over all axes but ``dim`` (Salimans 2016)."""
    axes = list(v.axes)
    axes[dim] = walk.agree([axes[dim], g.axes[dim]], _FIXED)
    return walk.out(axes)


def _of_rows(source: Value, *, normalized_shape: list[int], **_: Any) -> tuple[list[int], int]:
    rank = len(source.shape)
    return list(range(rank - len(normalized_shape), rank)), 1


def _of_blocks(source: Value, *, num_groups: int, **_: Any) -> tuple[list[int], int]:
    return [1], num_groups


def _of_each_channel(source: Value, **_: Any) -> tuple[list[int], int]:
    return [axis for axis in range(len(source.shape)) if axis != 1], 1


def _of_each_filter(source: Value, *, dim: int = 0, **_: Any) -> tuple[list[int], int]:
    return [axis for axis in range(len(source.shape)) if axis != dim % len(source.shape)], 1


def with_statistics(flow: Flow) -> Flow:
    """Decomposed graphs: the same norm, which also returns the statistics it used."""

    def several(walk: Walk, **arguments: Any) -> list[Value]:
        return [flow(walk, **arguments), *walk.fixed_outputs()[1:]]

    return several


_SWITCH = TrainingSwitch("training", statistics="running_mean")
_SWITCHED = TrainingSwitch("training", target=aten._native_batch_norm_legit.default)
_OWN_STATISTICS = TrainingSwitch("use_input_stats", statistics="running_mean")

ROWS: dict[Any, Op] = {
    aten.batch_norm: Op(batch_norm, kind="batch_norm", training_switch=_SWITCH),
    aten.instance_norm: Op(instance_norm, kind="instance_norm", training_switch=_OWN_STATISTICS),
    aten.layer_norm: Op(
        layer_norm, rewrite=reshape_norm, masks="kept", layer=layer.layer_norm, over=_of_rows, kind="layer_norm"
    ),
    aten.rms_norm: Op(layer_norm, rewrite=reshape_norm, masks="kept", over=_of_rows, kind="rms_norm"),
    aten._weight_norm: Op(weight_norm, masks="kept", over=_of_each_filter),
    aten.group_norm: Op(group_norm, rewrite=regroup_norm, masks="kept", over=_of_blocks, kind="group_norm"),
    aten._native_batch_norm_legit_no_training: Op(
        with_statistics(batch_norm), kind="batch_norm", training_switch=_SWITCHED
    ),
    aten._native_batch_norm_legit: Op(with_statistics(batch_norm), kind="batch_norm", training_switch=_SWITCH),
    aten._native_batch_norm_legit.no_stats: Op(
        with_statistics(batch_norm), masks="kept", over=_of_each_channel, kind="batch_norm"
    ),
    aten.native_batch_norm: Op(with_statistics(batch_norm), kind="batch_norm", training_switch=_SWITCH),
    aten.native_layer_norm: Op(
        with_statistics(layer_norm), rewrite=reshape_norm, masks="kept", over=_of_rows, kind="layer_norm"
    ),
}
