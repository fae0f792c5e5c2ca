"""Operators that mix positions along some axes and leave the others alone."""

from __future__ import annotations

from typing import Any

import torch

from slim_model.labels.values import Axis, Value, tensors_in
from slim_model.labels.walk import Walk
from slim_model.ops.row import Op

aten = torch.ops.aten


def spatial(count: int) -> Any:
    """Pooling, interpolation: values of one channel are mixed along the last ``count`` axes."""

    def flow(walk: Walk, **arguments: Any) -> Any:
        source, *others = tensors_in(arguments.values())
        for other in others:
            walk.pin(other, "its positions are used as data")
        return _mixed(walk, source, range(len(source.shape) - count, len(source.shape)), "its axis is spatial")

    return flow


def unpool(walk: Walk, self: Value, indices: Value, **_: Any) -> Value:
    """max_unpool: the indices of a channel come from the pooling of the same channel."""
    count = 3 if walk.node.target is aten.max_unpool3d.default else 2
    axes = walk.meet([self, indices], "its indices come from fixed channels")[1]
    for axis in axes[-count:]:
        walk.pin(axis, "its axis is spatial")
    return walk.out((*axes[:-count], *[None] * count))


def along(walk: Walk, self: Value, dim: int | list[int] = -1, **_: Any) -> Any:
    """softmax, cumsum, sort, ...: positions along ``dim`` are compared or accumulated."""
    dims = dim if isinstance(dim, list | tuple) else [dim]
    return _mixed(walk, self, [d % len(self.shape) for d in dims], "values along it are compared with each other")


def triangle(walk: Walk, self: Value, **_: Any) -> Any:
    rank = len(self.shape)
    return _mixed(walk, self, [rank - 2, rank - 1], "a triangle of it is cut out")


def everywhere(walk: Walk, **arguments: Any) -> Any:
    for value in tensors_in(arguments.values()):
        walk.pin(value, "all its values are used together")
    return walk.fixed_outputs()


def grid_sample(walk: Walk, input: Value, grid: Value, **_: Any) -> Value:
    walk.pin(grid, "its positions are coordinates")
    for axis in input.axes[2:]:
        walk.pin(axis, "its axis is spatial")
    return walk.out((*input.axes[:2], *[None] * (len(input.shape) - 2)))


FLOORED = "floored"
"""Marks a maximum (minimum) over channels behind which that of the dense model is taken: no less (more) than 0 where
a channel is gone."""


COUNTED = "counted"
"""Marks a statistic over channels that stays as the model's own class takes it, in a graph that follows one run."""


def extreme(walk: Walk, self: Value, dim: Any = None, keepdim: bool = False, **rest: Any) -> Any:
    """amax, amin: over channels they are a sum where 0 stands for a removed one (``FLOORED``), else a reduction."""
    rule = total if FLOORED in walk.node.meta else reduce
    return rule(walk, self, dim, keepdim, **rest)


def reduce(walk: Walk, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """argmax, any, ...: a reduced channel axis is pinned."""
    dims = dims_of(self, dim)
    for d in dims:
        walk.pin(self.axes[d], "it is reduced to one value")
    return _reduced(walk, self, dims, keepdim)


def total(walk: Walk, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """sum, norm: a removed channel counts as zero. mean, var, std: over the channels that are kept, as norms take them
    (others are written by sums, ``coupling.dense_counts``)."""
    dims = dims_of(self, dim)
    for d in dims:
        if COUNTED in walk.node.meta:
            walk.pin(self.axes[d], "the model's own class would take it over the channels that are left")
        else:
            walk.reads(self.axes[d])
    return _reduced(walk, self, dims, keepdim)


def cosine_similarity(walk: Walk, x1: Value, x2: Value, dim: int = 1, **_: Any) -> Value:
    """A removed channel counts as zero in the product and in both norms."""
    shape, axes = walk.meet([x1, x2], "it is compared with fixed values")
    dim %= len(shape)
    walk.reads(axes[dim])
    return walk.out([a for i, a in enumerate(axes) if i != dim])


def dims_of(value: Value, dim: Any) -> list[int]:
    """The axes that an operator's argument ``dim`` names, from 0 on; all where it names none."""
    rank = len(value.shape)
    if dim is None or dim == []:
        return list(range(rank))
    return [d % rank for d in (dim if isinstance(dim, list | tuple) else [dim])] if rank else []


def _over(source: Value, *, dim: Any = None, **_: Any) -> tuple[list[int], int]:
    return dims_of(source, dim), 1


def _reduced(walk: Walk, value: Value, dims: list[int], keepdim: bool) -> Any:
    axes: list[Axis] = [a for i, a in enumerate(value.axes) if i not in dims]
    if keepdim:
        axes = [None if i in dims else a for i, a in enumerate(value.axes)]
    return _all_outputs(walk, axes)


def _mixed(walk: Walk, value: Value, dims: Any, why: str) -> Any:
    for d in dims:
        walk.pin(value.axes[d], why)
    return _all_outputs(walk, [None if i in dims else a for i, a in enumerate(value.axes)])


def _all_outputs(walk: Walk, axes: list[Axis]) -> Any:
    outputs = walk.node.meta["val"]
    if isinstance(outputs, list | tuple):
        return [walk.out(axes, i) for i in range(len(outputs))]
    return walk.out(axes)


def _rows(op: Op, *operators: Any) -> dict[Any, Op]:
    return dict.fromkeys(operators, op)


ROWS: dict[Any, Op] = {
    **_rows(
        Op(spatial(1), effect="spatial"),
        *(aten.max_pool1d, aten.avg_pool1d, aten.adaptive_avg_pool1d, aten.adaptive_max_pool1d),
        *(aten.upsample_nearest1d, aten.upsample_linear1d, aten.max_pool1d_with_indices),
    ),
    **_rows(
        Op(spatial(2), effect="spatial"),
        *(aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d),
        *(aten.max_pool2d_with_indices, aten.upsample_nearest2d, aten.upsample_bilinear2d),
        *(
            aten.upsample_bicubic2d,
            aten._upsample_nearest_exact2d,
            aten._upsample_bilinear2d_aa,
            aten._upsample_bicubic2d_aa,
        ),
        *(aten.fractional_max_pool2d, aten.reflection_pad2d, aten.replication_pad2d),
    ),
    **_rows(
        Op(spatial(3), effect="spatial"),
        *(aten.max_pool3d, aten.avg_pool3d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool3d),
        *(aten.upsample_nearest3d, aten.upsample_trilinear3d, aten.max_pool3d_with_indices),
    ),
    **_rows(Op(unpool), aten.max_unpool2d, aten.max_unpool3d),
    **_rows(Op(along, kind="softmax", effect="along"), aten.softmax, aten._softmax, aten._safe_softmax),
    **_rows(
        Op(along, effect="along"),
        *(aten.log_softmax, aten._log_softmax, aten.cumsum, aten.cumprod),
        *(aten.logcumsumexp, aten.sort, aten.argsort, aten.topk, aten.kthvalue, aten.cummax, aten.cummin),
    ),
    **_rows(
        Op(reduce, effect="along"),
        *(aten.argmax, aten.argmin, aten.any, aten.all, aten.prod),
        *(aten.logsumexp, aten.median, aten.count_nonzero),
    ),
    **_rows(Op(extreme, masks="kept", kind="maximum", effect="along"), aten.amax, aten.max),
    **_rows(Op(extreme, masks="kept", kind="minimum", effect="along"), aten.amin, aten.min),
    aten.sum: Op(total, masks="inputs"),
    aten.mean: Op(total, masks="kept", over=_over, kind="mean"),
    **_rows(Op(total, masks="kept", over=_over, kind="variance"), aten.var, aten.var_mean),
    **_rows(Op(total, masks="kept", over=_over, kind="deviation"), aten.std, aten.std_mean),
    aten.linalg_vector_norm: Op(lambda walk, self, **k: total(walk, self, **k), masks="inputs"),
    aten.norm: Op(lambda walk, self, **k: total(walk, self, **k), masks="inputs"),
    aten.cosine_similarity: Op(cosine_similarity, masks="inputs"),
    aten.grid_sampler: Op(grid_sample),
    aten.grid_sampler_2d: Op(grid_sample),
    **_rows(Op(triangle, effect="along"), aten.tril, aten.triu),
    **_rows(Op(everywhere), aten.where.default, aten.nonzero, aten.item, aten._local_scalar_dense, aten.bincount),
}
