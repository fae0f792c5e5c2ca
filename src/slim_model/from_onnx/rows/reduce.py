"""Statistics along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slim_model.from_onnx.row import Call, Result, dims_of

_Reduction = Callable[[Tensor, list[int], bool], Tensor]


def over(function: _Reduction) -> Callable[[Call], Result]:
    """Of a function of a tensor, axes and whether these are kept with size 1."""

    def run(call: Call) -> Result:
        x, axes = call.tensor(0), call.given("axes", 1)
        if not axes and call.attribute("noop_with_empty_axes", 0):
            return function(x.unsqueeze(0), [0], False)
        axes = dims_of(x, axes) if axes else list(range(x.dim()))
        return function(x, axes, bool(call.attribute("keepdims", 1))) if axes else function(x.reshape(1), [0], False)

    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype)


SUM, PRODUCT = over(_sum), over(_product)
MEAN = over(lambda x, axes, keep: x.mean(axes, keep) if x.is_floating_point() else _whole_mean(x, axes, keep))
MAX = over(lambda x, axes, keep: x.amax(axes, keep))
MIN = over(lambda x, axes, keep: x.amin(axes, keep))
L1 = over(lambda x, axes, keep: _sum(x.abs(), axes, keep))
L2 = over(lambda x, axes, keep: torch.sqrt(_sum(x * x, axes, keep)))
LOG_SUM = over(lambda x, axes, keep: torch.log(_sum(x, axes, keep)))
LOG_SUM_EXP = over(lambda x, axes, keep: torch.logsumexp(x, axes, keep))
SUM_SQUARE = over(lambda x, axes, keep: _sum(x * x, axes, keep))


def _whole_mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    count: Any = 1
    for axis in axes:
        count = count * x.shape[axis]
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")
