"""Windows that slide over space, and what pads and pools."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slim_model.from_onnx.row import Call, Result

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_GLOBAL_MEAN = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_GLOBAL_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


@dataclass(frozen=True, slots=True)
class Window:
    """Of each axis of space; ``pads``: all before, then all after, as ONNX has them."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, x: Tensor, sizes: tuple[int, ...] = ()) -> Window:
        """What the attributes of ``call`` say, of windows over ``x``."""
        sizes = tuple(int(n) for n in sizes or call.attribute("kernel_shape"))
        strides = tuple(call.attribute("strides") or [1] * len(sizes))
        dilations = tuple(call.attribute("dilations") or [1] * len(sizes))
        pads = tuple(call.attribute("pads") or [0] * 2 * len(sizes))
        kind = call.attribute("auto_pad", "NOTSET")
        if kind.startswith("SAME"):
            spans = [d * (k - 1) + 1 for k, d in zip(sizes, dilations, strict=True)]
            lengths = [int(n) for n in x.shape[2:]]
            total = [
                max(0, (-(-n // s) - 1) * s + w - n) for n, s, w in zip(lengths, strides, spans, strict=True)
            ]  # fmt: skip
            small, large = [n // 2 for n in total], [-(-n // 2) for n in total]
            pads = (*large, *small) if kind == "SAME_LOWER" else (*small, *large)
        elif kind == "VALID":
            pads = (0,) * 2 * len(sizes)
        return cls(sizes, strides, dilations, pads)

    @property
    def before(self) -> tuple[int, ...]:
        return self.pads[: len(self.sizes)]

    @property
    def is_even(self) -> bool:
        """Whether both sides are padded alike, and not cut."""
        return self.before == self.pads[len(self.sizes) :] and min(self.pads, default=0) >= 0

    def without_pads(self) -> Window:
        return replace(self, pads=(0,) * len(self.pads))


def torch_pads(pads: Any) -> list[int]:
    """All before, then all after -> pairs from the last axis on, as PyTorch has them."""
    half = len(pads) // 2
    return [n for axis in reversed(range(half)) for n in (pads[axis], pads[half + axis])]


def padded(x: Tensor, pads: Any, value: float = 0.0) -> Tensor:
    return F.pad(x, torch_pads(pads), value=value)


def max_pool(call: Call) -> Result:
    x = call.tensor(0)
    window = Window.of(call, x)
    if call.wants(1):
        raise call.refusal("gives the places of its largest values")
    if not window.is_even or any(2 * p > k for p, k in zip(window.before, window.sizes, strict=True)):
        x, window = padded(x, window.pads, -math.inf), window.without_pads()
    pool: Any = _MAX[len(window.sizes)]
    ceil = bool(call.attribute("ceil_mode", 0))
    return pool(x, window.sizes, window.strides, window.before, window.dilations, ceil)  # type: ignore[no-any-return]


def average_pool(call: Call) -> Result:
    x = call.tensor(0)
    window = Window.of(call, x)
    ceil, count = bool(call.attribute("ceil_mode", 0)), bool(call.attribute("count_include_pad", 0))
    if any(d != 1 for d in window.dilations):
        raise call.refusal("has windows with holes, which PyTorch's pooling does not have")
    pool: Any = _MEAN[len(window.sizes)]
    fits = window.is_even and all(2 * p <= k for p, k in zip(window.before, window.sizes, strict=True))
    if fits:
        return pool(x, window.sizes, window.strides, window.before, ceil, count)  # type: ignore[no-any-return]
    whole = pool(padded(x, window.pads), window.sizes, window.strides, 0, ceil)
    if count:
        return whole  # type: ignore[no-any-return]
    ones = padded(torch.ones([1, 1, *(int(n) for n in x.shape[2:])]), window.pads)  # the share that is no padding
    return whole / pool(ones, window.sizes, window.strides, 0, ceil)  # type: ignore[no-any-return]


def global_average_pool(call: Call) -> Result:
    x = call.tensor(0)
    return _GLOBAL_MEAN[x.dim() - 2](x, 1)  # type: ignore[operator]


def global_max_pool(call: Call) -> Result:
    x = call.tensor(0)
    return _GLOBAL_MAX[x.dim() - 2](x, 1)  # type: ignore[operator]


def grid_sample(call: Call) -> Result:
    """``mode`` has other names before operator set 20."""
    mode, edge = call.attribute("mode", "bilinear"), call.attribute("padding_mode", "zeros")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    aligned = bool(call.attribute("align_corners", 0))
    return F.grid_sample(call.tensor(0), call.tensor(1), mode=mode, padding_mode=edge, align_corners=aligned)


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(call: Call) -> Result:
    x, mode = call.tensor(0), call.attribute("mode", "constant")
    given = call.given("pads", 1)
    axes = call.numbers(3, "axes") if call.has(3) else range(x.dim())
    half, pads = len(given) // 2, [0] * 2 * x.dim()
    for place, axis in enumerate(axes):
        pads[axis % x.dim()], pads[x.dim() + axis % x.dim()] = given[place], given[half + place]
    if not any(isinstance(n, torch.SymInt) or n for n in pads):
        return x
    if mode == "constant":
        value = call.attribute("value", 0.0) if call.version < 11 else 0.0
        value = call.numbers(2, "what it pads with")[0] if call.has(2) else value
        return F.pad(x, _trimmed(torch_pads(pads)), value=value)
    pairs = _trimmed(torch_pads(pads))
    if mode in _MODES and x.dim() - len(pairs) // 2 in (1, 2):
        return F.pad(x, pairs, mode=_MODES[mode])
    for axis, (before, after) in enumerate(zip(pads[: x.dim()], pads[x.dim() :], strict=True)):
        if before or after:  # axes that PyTorch does not pad so are looked up
            places = np.pad(np.arange(int(x.shape[axis])), (before, after), mode=mode)
            x = x.index_select(axis, torch.tensor(places.tolist(), dtype=torch.int64))
    return x


def _trimmed(pairs: list[int]) -> list[int]:
    """Without the first axes, which are not padded."""
    while len(pairs) > 2 and pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    return pairs
