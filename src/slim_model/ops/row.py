"""The shape of a row, and what a row may ask when constants are rewritten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.labels import FIXED, Axis, Flow, Value
from slim_model.ops.layer import Layer
from slim_model.trace import Graph


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    ``flow(walk, **arguments)`` gives the labels of the output from those of the inputs; arguments bear the names of
    the operator's schema. ``macs(out, **arguments)`` counts multiply-accumulates from shapes. ``rewrite(cut, node)``
    gives the arguments that change in the small graph (key ``target`` replaces the operator).

    ``masks`` says how the masked dense reference runs it: ``nothing`` (channels do not mix, or only move),
    ``inputs`` (it sums over channels: removed ones are zeroed first), ``kept`` (a statistic: runs over kept channels).
    ``layer(out, **arguments)`` says from shapes how the operator can be timed alone.
    """

    flow: Flow
    macs: Callable[..., int] | None = None
    rewrite: Callable[[Cut, fx.Node], dict[str, Any]] | None = None
    masks: Literal["nothing", "inputs", "kept"] = "nothing"
    layer: Callable[..., Layer] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """``number * left // whole``, of a number that is known only when the graph runs."""

    number: fx.Node
    left: int
    whole: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Which labels are kept, and the labels of every value of the dense graph."""

    graph: Graph
    values: dict[fx.Node, Any]
    choices: dict[str, list[Any]]
    keep: np.ndarray  # bool, by label; keep[FIXED] is True
    tensors: dict[str, Tensor] = field(default_factory=dict)  # replacements for index constants

    def kept(self, axis: Axis, size: int) -> Tensor:
        """bool ``(size,)``: which positions of an axis stay."""
        if axis is None:
            return torch.ones(size, dtype=torch.bool)
        return torch.from_numpy(self.keep[axis.numpy()])

    def count(self, axis: Axis, size: int = 0) -> int:
        return size if axis is None else int(self.keep[axis.numpy()].sum())

    def shape(self, value: Value) -> tuple[int, ...]:
        """Sizes once the removed positions are gone."""
        return tuple(self.count(axis, n) for axis, n in zip(value.axes, value.shape, strict=True))

    def gathered(self, tensor: Tensor, value: Value) -> Tensor:
        """``tensor``, whose labels are those of ``value``, without the removed positions."""
        for i, axis in enumerate(value.axes):
            kept = self.kept(axis, value.shape[i])
            if not kept.all():
                tensor = tensor.index_select(i, torch.nonzero(kept).flatten().to(tensor.device))
        return tensor

    def cuts(self, value: Value) -> bool:
        return any(axis is not None and not self.keep[axis.numpy()].all() for axis in value.axes)


__all__ = ["FIXED", "Cut", "Op"]
