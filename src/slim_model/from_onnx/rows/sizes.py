"""Sizes, constants and control flow: what is settled while the model is traced."""

from __future__ import annotations

import itertools
import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_model.from_onnx.known import LARGEST, Known, all_known, each, known
from slim_model.from_onnx.row import DTYPES, Call, Result, Value

LONGEST_LOOP = 1000
"""Rounds of a Loop that are written out."""


def shape(call: Call) -> Result:
    sizes = list(call.tensor(0).shape)
    return known(sizes[call.attribute("start", 0) : call.attribute("end", len(sizes))])


def size(call: Call) -> Result:
    return known(math.prod(call.tensor(0).shape))


def constant(call: Call) -> Result:
    for name, dtype in (("value_int", torch.int64), ("value_ints", torch.int64), ("value_float", torch.float32),
                        ("value_floats", torch.float32)):  # fmt: skip
        if name in call.step.attributes:
            return known(call.attribute(name), dtype)
    value = call.attribute("value")
    if value is None:
        raise call.refusal("holds text or a sparse tensor")
    return value  # type: ignore[no-any-return]


def constant_of_shape(call: Call) -> Result:
    sizes, value = call.numbers(0, "a shape"), call.attribute("value")
    number, dtype = (value.array.reshape(-1).tolist()[0], value.dtype) if value is not None else (0.0, torch.float32)
    if all(isinstance(n, int) for n in sizes) and math.prod(sizes) <= LARGEST and not dtype.is_floating_point:
        return known(np.full(sizes, number).tolist(), dtype)
    return torch.full(sizes, number, dtype=dtype)


def arange(call: Call) -> Result:
    start, limit, delta = (call.numbers(place, "a range")[0] for place in range(3))
    first = call.values[0]
    return torch.arange(start, limit, delta, dtype=first.dtype)  # type: ignore[union-attr]


def cast(call: Call) -> Result:
    return call.tensor(0).to(_type_named(call))


def cast_like(call: Call) -> Result:
    return call.tensor(0).to(call.values[1].dtype)  # type: ignore[union-attr]


def _type_named(call: Call) -> torch.dtype:
    dtype = DTYPES.get(call.attribute("to"))
    if dtype is None:
        raise call.refusal(f"makes values of type {call.attribute('to')}, which PyTorch does not compute with")
    return dtype


# -- control flow -----------------------------------------------------------------------------------------------------


def branch(call: Call) -> Result:
    """Of If: the branch that is taken, in line."""
    then = bool(_decided(call, 0))
    return tuple(call.enter(call.step.bodies["then_branch" if then else "else_branch"], []))


def loop(call: Call) -> Result:
    """Of Loop: its rounds, one after the other."""
    body, carried = call.step.bodies["body"], list[Any](call.values[2:])
    most = int(_decided(call, 0)) if call.has(0) else LONGEST_LOOP + 1
    going, gathered = bool(_decided(call, 1)) if call.has(1) else True, list[list[Value]]()
    for number in itertools.count():
        if not going or number >= most:
            break
        if number >= LONGEST_LOOP:
            raise call.refusal(f"goes round more than {LONGEST_LOOP} times")
        results = call.enter(body, [known(number), known(going, torch.bool), *carried])
        again, carried = results[0], results[1 : 1 + len(carried)]
        if not isinstance(again, Known):
            raise call.refusal("goes round as often as values say")
        going = bool(again.array.reshape(-1).tolist()[0])
        gathered.append(list(results[1 + len(carried) :]))
    scanned = [torch.stack([_tensor(x) for x in column]) for column in zip(*gathered, strict=True)]
    return (*carried, *scanned)


def _decided(call: Call, place: int) -> Any:
    value = call.values[place]
    if not isinstance(value, Known):
        raise call.refusal(
            "branches on values that are only known when the model runs (where such a value is an input of the model, "
            "--input NAME=int=16000 makes it a constant)"
        )
    return value.array.reshape(-1).tolist()[0]


def _tensor(value: Any) -> Tensor:
    return value.tensor() if isinstance(value, Known) else value


# -- known numbers, some of them symbolic ------------------------------------------------------------------------------


def _arrays(call: Call) -> list[np.ndarray]:
    return [call.array(place, "a size") for place in range(len(call.values)) if call.has(place)]


def _like_first(call: Call, array: np.ndarray) -> Known:
    return Known(np.asarray(array, dtype=object), call.values[0].dtype)  # type: ignore[union-attr]


def gather_sizes(call: Call) -> Known:
    sizes, places = _arrays(call)
    return _like_first(call, np.take(sizes, places.astype(np.int64), axis=call.attribute("axis", 0)))


def slice_sizes(call: Call) -> Known:
    sizes = call.array(0, "a size")
    starts, ends = call.given("starts", 1), call.given("ends", 2)
    axes = call.given("axes", 3, range(len(starts)))
    steps = call.numbers(4, "a step") if call.has(4) else [1] * len(starts)
    cut: list[slice] = [slice(None)] * sizes.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, None if end < -sizes.shape[axis] and step < 0 else end, step)
    return _like_first(call, sizes[tuple(cut)])


def concat_sizes(call: Call) -> Known:
    return _like_first(call, np.concatenate([a.astype(object) for a in _arrays(call)], axis=call.attribute("axis")))


def squeeze_sizes(call: Call) -> Known:
    axes = call.given("axes", 1)
    return _like_first(call, np.squeeze(call.array(0, "a size"), None if axes is None else tuple(axes)))


def unsqueeze_sizes(call: Call) -> Known:
    return _like_first(call, np.expand_dims(call.array(0, "a size"), tuple(call.given("axes", 1))))


def reshape_sizes(call: Call) -> Known:
    return _like_first(call, call.array(0, "a size").reshape(call.numbers(1, "a shape")))


def same_sizes(call: Call) -> Known:
    return _like_first(call, call.array(0, "a size"))


def cast_sizes(call: Call) -> Known:
    dtype = _type_named(call)
    to: Any = torch.sym_float if dtype.is_floating_point else torch.sym_int
    return Known(each(to, call.array(0, "a size")), dtype)


def where_sizes(call: Call) -> Known:
    chosen = each(lambda c, a, b: a if c else b, *_arrays(call))
    return Known(chosen, call.values[1].dtype)  # type: ignore[union-attr]


def expand_sizes(call: Call) -> Known:
    sizes, wanted = call.array(0, "a size"), tuple(call.numbers(1, "a shape"))
    return _like_first(call, np.broadcast_to(sizes, np.broadcast_shapes(sizes.shape, wanted)))


def product_of_sizes(call: Call) -> Known:
    sizes, keep = call.array(0, "a size"), call.attribute("keepdims", 1)
    axes = call.given("axes", 1)
    axis: Any = None if axes is None else tuple(axes)
    return _like_first(call, np.prod(sizes, axis=axis, keepdims=bool(keep)))


def _divided(a: Any, b: Any) -> Any:
    """Sizes are not negative, so rounding down is what ONNX does."""
    return a / b if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat) else a // b


ARITHMETIC: dict[str, Any] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divided,
    "Mod": operator.mod,
    "Min": torch.sym_min,
    "Max": torch.sym_max,
    "Neg": operator.neg,
    "Floor": math.floor,
    "Ceil": math.ceil,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "Less": operator.lt,
    "GreaterOrEqual": operator.ge,
    "LessOrEqual": operator.le,
    "Not": lambda a: not a,
    "And": lambda a, b: bool(a and b),
    "Or": lambda a, b: bool(a or b),
}
"""On single numbers, of which one may be symbolic."""
_TRUTHS = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or")


def arithmetic(call: Call) -> Known:
    """``ARITHMETIC`` of each place."""
    result = each(ARITHMETIC[call.step.op], *_arrays(call))
    if call.step.op in _TRUTHS:
        return Known(each(bool, result).astype(bool), torch.bool)
    return _like_first(call, result)


# -- sequences ---------------------------------------------------------------------------------------------------------


def sequence(call: Call) -> Result:
    return [value for value in call.values if value is not None]


def sequence_at(call: Call) -> Result:
    items = call.values[0]
    assert isinstance(items, list)
    return items[int(call.numbers(1, "a place")[0])]  # type: ignore[no-any-return]


def sequence_insert(call: Call) -> Result:
    items = list(call.values[0])  # type: ignore[arg-type]
    items.insert(int(call.numbers(2, "a place")[0]) if call.has(2) else len(items), call.values[1])
    return items


def sequence_joined(call: Call) -> Result:
    items, axis = call.values[0], call.attribute("axis")
    assert isinstance(items, list)
    if all_known(items) and not call.attribute("new_axis", 0):
        return Known(np.concatenate([item.array for item in items], axis=axis), items[0].dtype)
    join = torch.stack if call.attribute("new_axis", 0) else torch.cat
    return join([_tensor(item) for item in items], axis)
