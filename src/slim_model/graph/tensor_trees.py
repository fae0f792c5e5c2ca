"""Tensors among the nested values that a model takes and gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def tensors_among(values: Any) -> list[Tensor]:
    """The tensors in a nest of tuples, lists and dicts, in its order."""
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]


def copy_tensors(values: Any) -> Any:
    """The same nest over copies of its tensors: a forward may write to what it is given."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, values)


def batch_of(inputs: tuple[Any, ...]) -> int:
    """How many samples flat inputs hold: axis 0 of the first tensor that has one; 1 where none has."""
    return next((x.shape[0] for x in inputs if isinstance(x, Tensor) and x.dim()), 1)


def not_finite(value: Any) -> bool:
    """Whether ``value`` is a tensor of floats with NaN or infinity in it."""
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())
