"""Resize and Upsample: PyTorch's interpolation where it has the same places, else each axis by its own weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slim_model.from_onnx.row import Call, Result

_MODES = {1: {"linear": "linear"}, 2: {"linear": "bilinear", "cubic": "bicubic"}, 3: {"linear": "trilinear"}}


@dataclass(frozen=True, slots=True)
class _Axis:
    """``size`` becomes ``target``, at ``scale``."""

    number: int
    size: int
    target: int
    scale: float


def resize(call: Call) -> Result:
    x, mode = call.tensor(0), call.attribute("mode", "nearest")
    _check(call, mode)
    upsample = call.step.op == "Upsample"
    where = "asymmetric" if upsample else call.attribute("coordinate_transformation_mode", "half_pixel")
    scales, sizes = _asked(call)
    axes = call.attribute("axes") or range(x.dim())
    factors: list[Any] = [1.0] * x.dim()
    targets: list[Any] = list(x.shape)
    for place, axis in enumerate(axes):
        if sizes:
            targets[axis], factors[axis] = sizes[place], _ratio(sizes[place], x.shape[axis])
        elif isinstance(x.shape[axis], int) or scales[place] != 1:
            factors[axis] = scales[place]
            targets[axis] = _grown(x.shape[axis], scales[place])
    space = [a for a in range(x.dim()) if factors[a] != 1]
    if not space:
        return x
    if min(space) >= 2 and 3 <= x.dim() <= 5 and (how := _by_torch(call, mode, where, factors, targets, bool(sizes))):
        return F.interpolate(x, **how)
    for axis in space:
        one = _Axis(axis, int(x.shape[axis]), int(targets[axis]), float(factors[axis]))
        x = _nearest(call, x, one, where) if mode == "nearest" else _weighted(call, x, one, where, mode)
    return x


def _check(call: Call, mode: str) -> None:
    unusual = call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch" or call.attribute("antialias", 0)
    if unusual or mode not in ("nearest", "linear", "cubic") or call.attribute("exclude_outside", 0):
        raise call.refusal("resizes in a way that PyTorch does not (antialias, aspect ratio, exclude_outside)")


def _asked(call: Call) -> tuple[list[Any], list[Any]]:
    """Factors, or sizes."""
    if call.step.op == "Upsample" or call.version < 11:
        return call.given("scales", 1), []
    if call.has(3) and (sizes := call.numbers(3, "a size")):
        return [], sizes
    return call.numbers(2, "a factor"), []


def _ratio(target: Any, size: Any) -> Any:
    same = isinstance(target, torch.SymInt) and isinstance(size, torch.SymInt) and str(target) == str(size)
    return 1.0 if same else target / size


def _grown(size: Any, factor: float) -> Any:
    if factor == int(factor):
        return size * int(factor)
    return math.floor(float(np.float32(size) * np.float32(factor)))


def _by_torch(
    call: Call, mode: str, where: str, factors: list[Any], targets: list[Any], sized: bool
) -> dict[str, Any] | None:
    """How PyTorch interpolates so that it takes the same places; None where it does not."""
    space = range(2, len(factors))
    whole = all(factors[a] == int(factors[a]) for a in space)
    size: dict[str, Any] = {"size": [targets[a] for a in space]}
    if not (sized or whole):  # PyTorch would round the size, or the factor, in its own way
        return None
    if mode == "nearest":
        rounding = call.attribute("nearest_mode", "round_prefer_floor") if call.step.op != "Upsample" else "floor"
        halves = where in ("half_pixel", "pytorch_half_pixel") and rounding == "round_prefer_floor"
        same = (where == "asymmetric" and rounding == "floor") or (
            halves and whole and all(factors[a] >= 1 for a in space)
        )
        return {"mode": "nearest", **size} if same else None
    name = _MODES[len(space)].get(mode)
    if name is None or (mode == "cubic" and call.attribute("cubic_coeff_a", -0.75) != -0.75):
        return None
    if where == "half_pixel" or (where == "pytorch_half_pixel" and all(targets[a] != 1 for a in space)):
        return {"mode": name, "align_corners": False, **size}
    return {"mode": name, "align_corners": True, **size} if where == "align_corners" else None


# -- any places, of axes of known size ---------------------------------------------------------------------------------


def _places(call: Call, axis: _Axis, where: str) -> np.ndarray:
    """Where each value of the result lies among those that there are."""
    x, scale = np.arange(axis.target, dtype=np.float32), np.float32(axis.scale)  # as onnxruntime computes them
    if where == "align_corners":
        return x * (axis.size - 1) / max(axis.target - 1, 1)
    if where == "asymmetric":
        return x / scale
    if where == "pytorch_half_pixel" and axis.target == 1:
        return x * 0
    if where in ("half_pixel", "pytorch_half_pixel"):
        return (x + np.float32(0.5)) / scale - np.float32(0.5)
    if where == "half_pixel_symmetric":
        whole = axis.scale * axis.size
        return axis.size / 2 * (1 - axis.target / whole) + (x + np.float32(0.5)) / scale - np.float32(0.5)
    raise call.refusal(f"takes its places by '{where}'")


def _nearest(call: Call, x: Tensor, axis: _Axis, where: str) -> Tensor:
    places, rounding = _places(call, axis, where), call.attribute("nearest_mode", "round_prefer_floor")
    rounds: dict[str, Any] = {
        "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: np.floor(p + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    index = np.clip(rounds["floor" if call.step.op == "Upsample" else rounding](places), 0, axis.size - 1)
    return x.index_select(axis.number, torch.tensor(index.astype(int).tolist(), dtype=torch.int64))


def _weighted(call: Call, x: Tensor, axis: _Axis, where: str, mode: str) -> Tensor:
    """A product with the share that each value has in each of the result."""
    places = _places(call, axis, where)
    base, shares = np.floor(places).astype(int), np.zeros((axis.target, axis.size))
    rest = places - np.floor(places)
    taps = {0: 1 - rest, 1: rest} if mode == "linear" else _cubic(rest, call.attribute("cubic_coeff_a", -0.75))
    for tap, share in taps.items():
        np.add.at(shares, (np.arange(axis.target), np.clip(base + tap, 0, axis.size - 1)), share)
    weights = torch.tensor(shares.tolist(), dtype=x.dtype)
    return torch.matmul(x.transpose(axis.number, -1), weights.t()).transpose(axis.number, -1)


def _cubic(rest: np.ndarray, a: float) -> dict[int, np.ndarray]:
    """Keys, Cubic convolution interpolation, 1981."""

    def near(t: np.ndarray) -> np.ndarray:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return {-1: far(rest + 1), 0: near(rest), 1: near(1 - rest), 2: far(2 - rest)}
