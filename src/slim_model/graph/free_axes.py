"""Axes of the inputs that may have any size: what a user asks for, how they are called, and what size they have.

An axis that ``torch.export`` left free has an expression for its size, such as ``s77`` or ``2*s77``. Its symbols are
called here by what the axis is: batch, height, width, length. Axes of one symbol always have the same size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from slim_model.errors import InputError

Axes = tuple[frozenset[int], ...]
"""For each of the flattened inputs some of its axes."""
_NAMES = {2: ("length",), 3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}
"""What the last axes of an input are called, by how many axes it has."""


@dataclass(frozen=True, slots=True)
class FreeAxes:
    """``sizes``: of each flattened input, the axes that may have any size, each with its expression in named symbols.
    ``example``: the size of each symbol in the example inputs; ``ranges``: the least and the largest one that the model
    takes, as far as tracing tells. ``others``: sizes other than the example's, at which the model is compared, too."""

    sizes: tuple[Mapping[int, Any], ...] = ()
    example: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)

    def has(self, number: int, axis: int) -> bool:
        """Whether input ``number`` may have any size along ``axis``."""
        return number < len(self.sizes) and axis in self.sizes[number]

    def batch(self) -> list[str]:
        """The symbols of axis 0."""
        symbols = {str(symbol) for sizes in self.sizes if 0 in sizes for symbol in sizes[0].free_symbols}
        return sorted(symbols)

    def shape(self, number: int, x: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of input ``number``, whose example is ``x``, where symbols have these ``sizes``; those that are not
        given stay as in the example."""
        free = self.sizes[number] if number < len(self.sizes) else {}
        known = {**self.example, **sizes}
        return tuple(
            int(free[axis].subs({s: known[str(s)] for s in free[axis].free_symbols})) if axis in free else n
            for axis, n in enumerate(x.shape)
        )

    def elsewhere(self, batch: int) -> dict[str, int]:
        """The sizes of a ``batch``, and of ``others``."""
        return {**dict.fromkeys(self.batch(), batch), **self.others}

    def with_others(self, others: Mapping[str, int]) -> FreeAxes:
        return replace(self, others=others)


def free_axes(values: Sequence[Any], inputs: Sequence[Any], ranges: Mapping[Any, Any]) -> FreeAxes:
    """The free axes of traced inputs: ``values`` are what they were traced as, ``inputs`` their examples, ``ranges``
    the bounds of symbols that the trace found."""
    free_sizes = [(x, value, *free) for x, value in zip(inputs, values, strict=True) for free in _free_sizes(value)]
    names: dict[Any, Any] = {}
    example: dict[str, int] = {}

    def add(symbol: Any, name: str, size: int) -> None:
        name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 1000))) if n not in example)
        names[symbol], example[name] = type(symbol)(name, integer=True, positive=True), size

    for x, _, axis, size in free_sizes:
        if size.is_symbol and size not in names:
            add(size, axis_name(x, axis), x.shape[axis])
    for x, value, axis, size in free_sizes:  # symbols that stand in a product alone
        for symbol in sorted(size.free_symbols - names.keys(), key=str):
            add(symbol, f"{axis_name(x, axis)}_unit", _hint(value, symbol))
    sizes = tuple({axis: size.subs(names) for axis, size in _free_sizes(value)} for value in values)
    bounds = {str(name): _bounds(ranges.get(symbol)) for symbol, name in names.items()}
    return FreeAxes(sizes, example, bounds)


def _free_sizes(value: Any) -> Iterator[tuple[int, Any]]:
    sizes: Any = value.shape if isinstance(value, Tensor) else ()
    yield from ((axis, size.node.expr) for axis, size in enumerate(sizes) if is_free(size))


def is_free(size: Any) -> bool:
    """Symbolic, and not fixed while the model was traced (as the steps of a recurrent layer are)."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _hint(value: Tensor, symbol: Any) -> int:
    sizes: Any = value.shape
    environment = next(n for n in sizes if is_free(n)).node.shape_env
    hints = getattr(environment, "backed_var_to_val", None) or environment.var_to_val
    return int(hints[symbol])


def _bounds(bounds: Any) -> tuple[float, float]:
    if bounds is None:
        return 2, math.inf
    least, most = float(bounds.lower), float(bounds.upper)
    return max(least, 2), most if most < 2**31 else math.inf


def axis_name(x: Any, axis: int) -> str:
    """``batch``, ``height``, ``width``, ``length``, ...: what ``axis`` of an input like ``x`` is called.

    A picture may lie channels last: (N, H, W, C) with few channels.
    """
    if axis == 0:
        return "batch"
    names = _NAMES.get(x.dim(), ())
    last = x.dim() > 3 and x.shape[-1] <= 4 < x.shape[1]
    place = axis - (x.dim() - len(names) - last)
    if x.dim() == 3:
        return "length"
    return names[place] if 0 <= place < len(names) else f"axis_{axis}"


# -- what is asked for ----------------------------------------------------------------------------------------------


def asked_axes(dynamic: Sequence[str], names: Sequence[str], inputs: Sequence[Any]) -> Axes:
    """The axes that ``dynamic`` (``"0,2,3"``, ``"ids=0,1"``) asks to be free, of each of the flattened ``inputs``.

    Raises InputError where there is no such input or axis, or where the example has size 1 there.
    """
    asked: list[set[int]] = [set() for _ in inputs]
    for text in dynamic:
        name, _, axes = text.rpartition("=")
        numbers = [i for i, n in enumerate(names) if n == name or n.startswith(f"{name}.")] if name else [0]
        if not numbers or not inputs:
            raise InputError(f"dynamic {text}: the model has no input '{name}'; its inputs are {', '.join(names)}.")
        for number in numbers:
            asked[number] |= {_checked(text, names[number], inputs[number], int(axis)) for axis in axes.split(",")}
    return tuple(map(frozenset, asked))


def _checked(text: str, name: str, x: Any, axis: int) -> int:
    if not isinstance(x, Tensor) or not -x.dim() <= axis < x.dim():
        has = f"has axes 0 to {x.dim() - 1}" if isinstance(x, Tensor) and x.dim() else "has no axes"
        raise InputError(f"dynamic {text}: input '{name}' {has}.")
    axis %= x.dim()
    if axis and x.shape[axis] < 2:
        raise InputError(
            f"dynamic {text}: the example of input '{name}' has size {x.shape[axis]} along axis {axis}. Tracing takes "
            "a size of 1 for a fixed one: give an example with 2 or more there."
        )
    return axis
