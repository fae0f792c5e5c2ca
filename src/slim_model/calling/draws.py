"""What a forward draws at random, and the mean of what is drawn.

A VAE's sampling, ``dist.sample()`` of a policy, dropout that is left on: nothing can be compared of what comes out
otherwise at each run. With its mean in the place of each draw the forward is a function. The mean of the draws gives
not the mean of the outputs, but where these are linear in what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Given = Mapping[str, Any]
"""The arguments of an operator by name."""


class Call(NamedTuple):
    """An operator and its arguments."""

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}


_SWITCHES = {"train": False, "training": False, "dropout_p": 0.0}
"""The argument that makes an operator draw, and its value where it does not; in eval mode layers have this one."""
_KINDS = ("dtype", "layout", "device", "pin_memory")


def _filled(value: float) -> Callable[[Given], Call]:
    return lambda given: Call(aten.full.default, (given["size"], value), _kinds(given))


def _filled_like(value: float) -> Callable[[Given], Call]:
    return lambda given: Call(aten.full_like.default, (given["self"], value), _kinds(given))


def _kinds(given: Given) -> dict[str, Any]:
    return {name: given[name] for name in _KINDS if given.get(name) is not None}


def _written(mean: Callable[..., float], *names: str) -> Callable[[Given], Call | None]:
    """Written in place: the ``mean`` of the numbers of these names, unless the graph computes them."""

    def call(given: Given) -> Call | None:
        numbers = [given[name] for name in names]
        known = all(isinstance(number, int | float) for number in numbers)
        return Call(aten.fill_.Scalar, (given["self"], float(mean(*numbers)))) if known else None

    return call


def _normal(given: Given) -> Call:
    """normal.Tensor_Tensor: both are spread to one shape, as ``mean + 0 * std`` is."""
    return Call(aten.add.Tensor, (given["mean"], given["std"]), {"alpha": 0})


MEANS: dict[Any, Callable[[Given], Call | None]] = {
    **dict.fromkeys((aten.randn.default, aten.randn.generator), _filled(0.0)),
    **dict.fromkeys((aten.rand.default, aten.rand.generator), _filled(0.5)),
    **dict.fromkeys((aten.randn_like.default, aten.randn_like.generator), _filled_like(0.0)),
    **dict.fromkeys((aten.rand_like.default, aten.rand_like.generator), _filled_like(0.5)),
    aten.normal.float_float: lambda given: _filled(given["mean"])(given),
    aten.normal.Tensor_float: lambda given: Call(aten.clone.default, (given["mean"],)),
    aten.normal.float_Tensor: lambda given: Call(aten.full_like.default, (given["std"], given["mean"])),
    aten.normal.Tensor_Tensor: _normal,
    aten.bernoulli.default: lambda given: Call(aten.clone.default, (given["self"],)),
    aten.bernoulli.p: lambda given: Call(aten.full_like.default, (given["self"], given["p"])),
    aten.bernoulli.Tensor: lambda given: Call(aten.expand_as.default, (given["p"], given["self"])),
    aten.poisson.default: lambda given: Call(aten.clone.default, (given["self"],)),
    aten._standard_gamma.default: lambda given: Call(aten.clone.default, (given["self"],)),
    aten.binomial.default: lambda given: Call(aten.mul.Tensor, (given["count"], given["prob"])),
    aten.normal_.default: _written(lambda mean: mean, "mean"),
    aten.uniform_.default: _written(lambda least, most: (least + most) / 2, "from", "to"),
    aten.bernoulli_.float: _written(lambda p: p, "p"),
    aten.bernoulli_.Tensor: lambda given: Call(aten.copy_.default, (given["self"], given["p"])),
    aten.exponential_.default: _written(lambda rate: 1 / rate, "lambd"),
    aten.geometric_.default: _written(lambda p: 1 / p, "p"),
    aten.log_normal_.default: _written(lambda mean, std: math.exp(mean + std**2 / 2), "mean", "std"),
}
"""The mean of what an operator draws, as another call. Whole numbers (``multinomial``, ``randint``, ``randperm``) have
none, nor has a Cauchy distribution."""


def draws(target: Any, given: Given) -> bool:
    """Whether the operator draws random numbers, called with the arguments ``given``."""
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    switches = [name for name in _SWITCHES if name in given]
    return not switches or any(given[name] not in (False, 0, None) for name in switches)


def mean_of(target: Any, given: Given) -> Call | None:
    """What gives the mean of what an operator that ``draws`` gives; None where it has none."""
    if any(name in given for name in _SWITCHES):
        quiet = [_SWITCHES.get(name, value) for name, value in given.items()]
        arguments = target._schema.arguments
        args = tuple(x for a, x in zip(arguments, quiet, strict=True) if not a.kwarg_only)
        named = {a.name: x for a, x in zip(arguments, quiet, strict=True) if a.kwarg_only}
        return None if "alpha_dropout" in target.overloadpacket.__name__ else Call(target, args, named)
    mean = MEANS.get(target)
    return mean(given) if mean else None


class Means(TorchDispatchMode):
    """The code that runs inside gets the mean of whatever it draws."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            named = {a.name: a.default_value for a in func._schema.arguments}
            named |= dict(zip(named, args, strict=False)) | given
            if draws(func, named) and (call := mean_of(func, named)):
                return call.target(*call.args, **call.kwargs)
        return func(*args, **given)
