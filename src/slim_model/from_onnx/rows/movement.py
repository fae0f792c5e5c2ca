"""Operators that move values, take some of them or put them together."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slim_model.from_onnx.known import Known
from slim_model.from_onnx.row import DTYPES, Call, Result, dims_of

_END = sys.maxsize


def identity(call: Call) -> Result:
    return call.values[0] if isinstance(call.values[0], list) else call.tensor(0)


def reshape(call: Call) -> Result:
    x = call.tensor(0)
    sizes = call.given("shape", 1)
    if not call.attribute("allowzero", 0):  # a 0 stands for the size that is there
        sizes = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: Call) -> Result:
    x, axis = call.tensor(0), call.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    if axis == x.dim():
        return x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(call: Call) -> Result:
    x = call.tensor(0)
    return x.permute(call.attribute("perm") or list(reversed(range(x.dim()))))


def squeeze(call: Call) -> Result:
    x, axes = call.tensor(0), call.given("axes", 1)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    for axis in sorted(dims_of(x, axes), reverse=True):
        x = x.squeeze(axis)
    return x


def unsqueeze(call: Call) -> Result:
    x, axes = call.tensor(0), call.given("axes", 1)
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def concat(call: Call) -> Result:
    return torch.cat(call.tensors(), call.attribute("axis", 1))


def split(call: Call) -> Result:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    sizes = call.given("split", 1)
    if sizes is None:
        parts = call.attribute("num_outputs", len(call.step.outputs))
        each = -(-int(x.shape[axis]) // parts)
        return tuple(x.split(each, axis))
    return tuple(x.split(list(sizes), axis))


def split_to_sequence(call: Call) -> Result:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    if not call.has(1):
        keep = call.attribute("keepdims", 1)
        return [part if keep else part.squeeze(axis) for part in x.split(1, axis)]
    sizes = call.array(1, "sizes")
    return list(x.split(int(sizes) if sizes.ndim == 0 else sizes.tolist(), axis))


def slice_(call: Call) -> Result:
    x = call.tensor(0)
    starts, ends = call.given("starts", 1), call.given("ends", 2)
    axes = call.given("axes", 3, range(len(starts)))
    steps = call.numbers(4, "a step") if call.has(4) else [1] * len(starts)
    for axis, start, end, step in zip(dims_of(x, axes), starts, ends, steps, strict=True):
        if step < 0:  # from the end on
            places = list(range(int(x.shape[axis])))[_slice(int(x.shape[axis]), start, end, step)]
            x = x.flip(axis) if places == list(range(len(places)))[::-1] and len(places) == x.shape[axis] else (
                x.index_select(axis, torch.tensor(places, dtype=torch.int64)))  # fmt: skip
        else:
            x = torch.ops.aten.slice(x, axis, start, end if not isinstance(end, int) or end < _END else _END, step)
    return x


def _slice(size: int, start: int, end: int, step: int) -> slice:
    return slice(min(start, size - 1) if start >= 0 else start, None if end < -size else end, step)


def gather(call: Call) -> Result:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    places = call.values[1]
    if isinstance(places, Known) and not places.is_symbolic and places.is_small and places.array.ndim == 0:
        return x.select(axis, int(places.array))
    axis %= x.dim()
    index = call.tensor(1)
    if isinstance(places, Known) and not places.is_symbolic and places.array.size and places.array.min() < 0:
        index = index % x.shape[axis]
    if axis == 0 and x.dim() == 2 and isinstance(call.values[0], Known):  # a table of words
        return F.embedding(index, x)
    if not isinstance(places, Known):
        index = torch.where(index < 0, index + x.shape[axis], index)
    if index.dim() == 1:
        return x.index_select(axis, index)
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def gather_elements(call: Call) -> Result:
    x, index, axis = call.tensor(0), call.tensor(1), call.attribute("axis", 0)
    return torch.gather(x, axis, _counted_from_the_front(call, 1, index, x.shape[axis]).long())


def gather_nd(call: Call) -> Result:
    if call.attribute("batch_dims", 0):
        raise call.refusal("keeps batches apart (batch_dims)")
    index = call.tensor(1)
    return call.tensor(0)[tuple(index.unbind(-1))]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(call: Call) -> Result:
    x, index, updates = (call.tensor(place) for place in range(3))
    axis, reduction = call.attribute("axis", 0), call.attribute("reduction", "none")
    index = _counted_from_the_front(call, 1, index, x.shape[axis]).long()
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def scatter_nd(call: Call) -> Result:
    x, index, updates = (call.tensor(place) for place in range(3))
    reduction = call.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        raise call.refusal(f"reduces by '{reduction}'")
    return x.index_put(tuple(index.unbind(-1)), updates, accumulate=reduction == "add")


def _counted_from_the_front(call: Call, place: int, index: Tensor, size: Any) -> Tensor:
    value = call.values[place]
    if isinstance(value, Known) and (value.is_symbolic or not value.array.size or value.array.min() >= 0):
        return index
    return torch.where(index < 0, index + size, index)


def expand(call: Call) -> Result:
    x, sizes = call.tensor(0), call.numbers(1, "a shape")
    front = [1] * (len(sizes) - x.dim()) + list(x.shape)
    sizes = [1] * (len(front) - len(sizes)) + sizes
    return x.expand([here if isinstance(n, int) and n == 1 else n for here, n in zip(front, sizes, strict=True)])


def tile(call: Call) -> Result:
    return call.tensor(0).repeat(call.numbers(1, "how often it repeats"))


def depth_to_space(call: Call) -> Result:
    x, block = call.tensor(0), call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // (block * block), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (block * block), h * block, w * block)


def space_to_depth(call: Call) -> Result:
    x, block = call.tensor(0), call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block * block, h // block, w // block)


def trilu(call: Call) -> Result:
    k = int(call.numbers(1, "a diagonal")[0]) if call.has(1) else 0
    return torch.triu(call.tensor(0), k) if call.attribute("upper", 1) else torch.tril(call.tensor(0), k)


def eye_like(call: Call) -> Result:
    x, k = call.tensor(0), call.attribute("k", 0)
    rows, columns = (torch.arange(n) for n in x.shape)
    return (columns[None] == rows[:, None] + k).to(DTYPES.get(call.attribute("dtype"), x.dtype))


def one_hot(call: Call) -> Result:
    index, depth = call.tensor(0), int(call.numbers(1, "a depth")[0])
    off, on = call.tensor(2).unbind()
    axis = call.attribute("axis", -1)
    places = torch.arange(depth).reshape([-1] + [1] * ((index.dim() - axis) if axis >= 0 else -axis - 1))
    return torch.where(torch.where(index < 0, index + depth, index).unsqueeze(axis) == places, on, off)


def non_zero(call: Call) -> Result:
    return torch.nonzero(call.tensor(0)).t()


def compress(call: Call) -> Result:
    x, axis = call.tensor(0), call.attribute("axis")
    places = [i for i, kept in enumerate(call.numbers(1, "what it keeps")) if kept]
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64))


def cumulative_sum(call: Call) -> Result:
    x, axis = call.tensor(0), int(call.numbers(1, "an axis")[0])
    back = call.attribute("reverse", 0)
    x = x.flip(axis) if back else x
    summed = x.cumsum(axis, dtype=x.dtype)
    summed = summed - x if call.attribute("exclusive", 0) else summed
    return summed.flip(axis) if back else summed


def top_k(call: Call) -> Result:
    k = call.numbers(1, "how many it takes")[0]
    largest, in_order = bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1))
    return tuple(torch.topk(call.tensor(0), k, call.attribute("axis", -1), largest, in_order))


def arg_max(call: Call) -> Result:
    return _arg(call, torch.argmax)


def arg_min(call: Call) -> Result:
    return _arg(call, torch.argmin)


def _arg(call: Call, function: Any) -> Result:
    if call.attribute("select_last_index", 0):
        raise call.refusal("takes the last of several equal values")
    return function(call.tensor(0), call.attribute("axis", 0), bool(call.attribute("keepdims", 1)))  # type: ignore[no-any-return]
