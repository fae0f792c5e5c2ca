"""Operators that treat each value alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slim_model.from_onnx.row import Call, Result


def one(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Result]:
    """Of a function of one tensor."""
    return lambda call: function(call.tensor(0))


def two(function: Callable[[Any, Any], Any]) -> Callable[[Call], Result]:
    """Of a function of two operands, of which one may be a number."""

    def run(call: Call) -> Result:
        a, b = _operands(call)
        return function(a, b)  # type: ignore[no-any-return]

    return run


def many(function: Callable[[Any, Any], Any]) -> Callable[[Call], Result]:
    """Of a function of two tensors, over as many as there are."""
    return lambda call: functools.reduce(function, call.tensors())


def mean(call: Call) -> Result:
    return functools.reduce(torch.add, call.tensors()) / len(call.values)


def _operands(call: Call) -> tuple[Any, Any]:
    a, b = call.operand(0), call.operand(1)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return call.tensor(0), b
    other = a if isinstance(a, Tensor) else b
    if isinstance(other, Tensor) and not other.dim():  # [1] and [] give [1]: a number would give []
        return call.tensor(0), call.tensor(1)
    return a, b


def div(call: Call) -> Result:
    a, b = _operands(call)
    whole = not any(x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float) for x in (a, b))
    return torch.div(a if isinstance(a, Tensor) else call.tensor(0), b, rounding_mode="trunc") if whole else a / b


def power(call: Call) -> Result:
    x, exponent = call.tensor(0), call.operand(1)
    if isinstance(exponent, float) and exponent == int(exponent):
        exponent = int(exponent)
    return torch.pow(x, exponent).to(x.dtype)


def mod(call: Call) -> Result:
    a, b = call.tensor(0), call.operand(1)
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


def where(call: Call) -> Result:
    return torch.where(call.tensor(0), call.tensor(1), call.tensor(2))


def clip(call: Call) -> Result:
    x = call.tensor(0)
    least = call.operand(1) if call.has(1) else call.attribute("min")
    most = call.operand(2) if call.has(2) else call.attribute("max")
    if least is None and most is None:
        return x
    if isinstance(least, Tensor) or isinstance(most, Tensor):
        least, most = (
            n if n is None or isinstance(n, Tensor) else torch.tensor(n, dtype=x.dtype) for n in (least, most)
        )
    return torch.clamp(x, least, most)


def leaky_relu(call: Call) -> Result:
    return F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


def prelu(call: Call) -> Result:
    x, slope = call.tensor(0), call.tensor(1)
    per_channel = x.dim() > 1 and slope.numel() == x.shape[1] and slope.dim() == x.dim() - 1
    if (per_channel and all(n == 1 for n in slope.shape[1:])) or slope.numel() == 1:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


def elu(call: Call) -> Result:
    return F.elu(call.tensor(0), call.attribute("alpha", 1.0))


def celu(call: Call) -> Result:
    return F.celu(call.tensor(0), call.attribute("alpha", 1.0))


def selu(call: Call) -> Result:
    x = call.tensor(0)
    alpha, gamma = (
        call.attribute("alpha", 1.67326319217681884765625),
        call.attribute("gamma", 1.05070102214813232421875),
    )
    return gamma * F.elu(x, alpha)


def thresholded_relu(call: Call) -> Result:
    return F.threshold(call.tensor(0), call.attribute("alpha", 1.0), 0.0)


def hard_sigmoid(call: Call) -> Result:
    x, alpha, beta = call.tensor(0), call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def gelu(call: Call) -> Result:
    return F.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


def swish(call: Call) -> Result:
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def shrink(call: Call) -> Result:
    x, bias, lambd = call.tensor(0), call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def is_inf(call: Call) -> Result:
    x, below, above = call.tensor(0), call.attribute("detect_negative", 1), call.attribute("detect_positive", 1)
    if below and above:
        return torch.isinf(x)
    return x == (-math.inf if below else math.inf) if below or above else torch.zeros_like(x, dtype=torch.bool)


def dropout(call: Call) -> Result:
    x = call.tensor(0)
    if call.has(2) and call.numbers(2, "whether it trains")[0]:
        raise call.refusal("is in training mode; export the model in eval mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.wants(1) else x
