"""Norms and softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from slim_model.from_onnx.row import Call, Result


def batch_norm(call: Call) -> Result:
    if call.attribute("training_mode", 0) or any(call.wants(place) for place in (1, 2)):
        raise call.refusal("is in training mode; export the model in eval mode")
    x, weight, bias, mean, var = (call.tensor(place) for place in range(5))
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, call.attribute("epsilon", 1e-5))


def instance_norm(call: Call) -> Result:
    x, weight, bias = (call.tensor(place) for place in range(3))
    return F.instance_norm(x, None, None, weight, bias, True, 0.0, call.attribute("epsilon", 1e-5))


def layer_norm(call: Call) -> Result:
    if call.wants(1) or call.wants(2):
        raise call.refusal("gives its mean or its deviation, too")
    x = call.tensor(0)
    shape = [int(n) for n in x.shape[call.attribute("axis", -1) % x.dim() :]]
    weight, bias = call.optional(1), call.optional(2)
    weight, bias = (p if p is None else p.expand(shape) if list(p.shape) != shape else p for p in (weight, bias))
    return F.layer_norm(x, shape, weight, bias, call.attribute("epsilon", 1e-5))


def rms_norm(call: Call) -> Result:
    x = call.tensor(0)
    shape = [int(n) for n in x.shape[call.attribute("axis", -1) % x.dim() :]]
    return F.rms_norm(x, shape, call.optional(1), call.attribute("epsilon", 1e-5))


def group_norm(call: Call) -> Result:
    x, weight, bias = (call.tensor(place) for place in range(3))
    groups = call.attribute("num_groups")
    if weight.shape[0] == groups != x.shape[1]:  # of operator set 18: a number for each group
        weight, bias = (p.repeat_interleave(int(x.shape[1]) // groups) for p in (weight, bias))
    return F.group_norm(x, groups, weight, bias, call.attribute("epsilon", 1e-5))


def local_response_norm(call: Call) -> Result:
    if not call.attribute("size") % 2:
        raise call.refusal("has an even size")
    alpha, beta, k = (call.attribute(n, d) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return F.local_response_norm(call.tensor(0), call.attribute("size"), alpha, beta, k)


def lp_norm(call: Call) -> Result:
    x, axis = call.tensor(0), call.attribute("axis", -1)
    norm = x.abs().sum(axis, True) if call.attribute("p", 2) == 1 else torch.sqrt((x * x).sum(axis, True))
    return x / torch.where(norm == 0, 1.0, norm)


def mean_variance_norm(call: Call) -> Result:
    x, axes = call.tensor(0), call.attribute("axes", [0, 2, 3])
    centred = x - x.mean(axes, True)
    return centred / (torch.sqrt((centred * centred).mean(axes, True)) + 1e-9)


def softmax(call: Call) -> Result:
    return _along(call, torch.softmax)


def log_softmax(call: Call) -> Result:
    return _along(call, torch.log_softmax)


def hardmax(call: Call) -> Result:
    return _along(call, lambda x, axis: torch.zeros_like(x).scatter(axis, x.argmax(axis, True), 1.0))


def _along(call: Call, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Along one axis; before operator set 13 along all from there on."""
    x = call.tensor(0)
    axis = call.attribute("axis", -1 if call.version >= 13 else 1) % x.dim()
    if call.version >= 13 or axis == x.dim() - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)
