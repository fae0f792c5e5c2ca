"""What an operator's row is given when its constants are rewritten for the small graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.labels.values import Axis, Value


@dataclass(frozen=True, slots=True)
class Fraction:
    """``number * left // whole``, of a number that is known only when the graph runs."""

    number: fx.Node
    left: int
    whole: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Which labels are kept, and the labels of every value of the dense graph."""

    graph: Graph
    values: Mapping[fx.Node, Any]
    choices: Mapping[str, Sequence[Any]]
    keep: np.ndarray  # bool, by label; keep[FIXED] is True

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
