"""Labels and what carries them: which channel sits at which position of which axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

FIXED = 0
Axis = Tensor | None
"""Labels along one axis, int32 ``(size,)``; None where every position is fixed."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor as the walk sees it: its shape and, for each axis, the labels along it."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def labelled(self) -> bool:
        return any(axis is not None for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Birth:
    """``size`` labels from ``start`` on were given to ``axis`` of the stored tensor ``owner``. An owner ``@node`` is
    none: the node of that name makes these positions (padding, a constant)."""

    start: int
    size: int
    owner: str
    axis: int


@dataclass(frozen=True, slots=True)
class Pin:
    """``labels`` were fixed at ``node``, because ``why``."""

    labels: Tensor
    node: fx.Node
    why: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What a walk over the small graph repeats: kept channels along each born axis, and the choices made."""

    born: dict[tuple[str, int], Tensor]
    choices: Mapping[str, Sequence[Any]]
    pinned: Mapping[str, str]


Flow = Callable[..., Any]


def fixed_value(shape: tuple[int, ...]) -> Value:
    """A tensor of ``shape`` without labels: no position of it can go."""
    return Value(shape, (None,) * len(shape))


def tensors_in(arguments: Iterable[Any]) -> list[Value]:
    """The Values among nested lists and tuples, in order."""
    return [x for x in leaves_in(arguments) if isinstance(x, Value)]


def leaves_in(arguments: Iterable[Any]) -> Iterable[Any]:
    """All that nested lists and tuples hold, in order."""
    for x in arguments:
        if isinstance(x, list | tuple):
            yield from leaves_in(x)
        else:
            yield x
