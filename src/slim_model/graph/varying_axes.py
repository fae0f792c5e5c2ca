"""Along which axes of a tensor its values differ."""

from __future__ import annotations

import torch
from torch import Tensor


def varying_axes(labels: Tensor) -> list[int]:
    """The axes along which values of ``labels`` differ."""
    return [a for a, n in enumerate(without_constant_axes(labels).shape) if n > 1]


def without_constant_axes(labels: Tensor, keep: int = 0) -> Tensor:
    """``labels``, narrowed to size one along every axis (but the first ``keep``) along which nothing changes."""
    for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if axis >= keep and size > 1 and stride == 0:
            labels = labels.narrow(axis, 0, 1)
    for axis in sorted(range(keep, labels.dim()), key=lambda a: -labels.shape[a]):
        line = labels
        for other in range(labels.dim() - 1, -1, -1):
            line = line if other == axis else line.select(other, 0)
        if len(line) > 1 and bool((line == line[0]).all()) and _repeats(labels, axis):
            labels = labels.narrow(axis, 0, 1)
    return labels


def _repeats(labels: Tensor, axis: int) -> bool:
    length = labels.shape[axis] - 1
    return torch.equal(labels.narrow(axis, 1, length), labels.narrow(axis, 0, length))
