"""Numbers that are known before any input has values: constants, sizes, and what follows from them.

ONNX computes shapes with the operators that it computes values with: ``Shape``, ``Gather``, ``Concat``, ``Reshape``.
Such numbers are not traced: they are computed while the model is, so that a shape is one and a free batch stays free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 4096
"""Whole numbers of a stored tensor that are taken for sizes, axes or indices; more are looked up as a tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """``array`` of numbers that ONNX has as ``dtype``; of Python objects where a size of a free axis is among them.
    ``name``: of the stored tensor that they are."""

    array: np.ndarray
    dtype: torch.dtype
    name: str = ""

    @property
    def is_symbolic(self) -> bool:
        """Whether a size of a free axis is among them."""
        return self.array.dtype == object

    @property
    def is_small(self) -> bool:
        """Whether what follows from them is computed ahead, too; else they are a weight like others."""
        whole = not self.dtype.is_floating_point and self.array.size <= LARGEST
        return not self.name or whole or self.array.size == 1

    def tensor(self) -> Tensor:
        """As a tensor of the graph."""
        if not self.is_symbolic:
            return torch.tensor(self.array.tolist(), dtype=self.dtype).reshape(self.array.shape)
        parts = [torch.scalar_tensor(n, dtype=self.dtype) for n in self.array.reshape(-1)]
        return torch.stack(parts).reshape(self.array.shape)

    def real(self) -> Tensor:
        """As a tensor of its own, which no tracer sees."""
        return torch.from_numpy(np.array(self.array)).to(self.dtype)


def known(values: Any, dtype: torch.dtype = torch.int64) -> Known:
    """Numbers, nested as their axes are."""
    nested = np.array(values, dtype=object)
    symbolic = any(not isinstance(n, int | float) for n in nested.reshape(-1))
    return Known(nested if symbolic else np.array(values, dtype=str(dtype).removeprefix("torch.")), dtype)


def known_tensor(value: Tensor) -> Known:
    """What a tensor of its own holds."""
    return Known(value.detach().numpy(), value.dtype)


def each(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """``function`` of each place, broadcast; of Python objects."""
    result = np.frompyfunc(function, len(arrays), 1)(*(a.astype(object) for a in arrays))
    return np.asarray(result, dtype=object)


def all_known(values: Iterable[Any]) -> bool:
    """Whether all that an operator reads is known ahead."""
    return all(value is None or (isinstance(value, Known) and value.is_small) for value in values)
