"""Data sets as rows of tensors, and how they are divided into training and test parts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from slim_model.errors import InputError

Split = Literal["train", "test"]
_HELD_OUT = 5  # one sample in so many, where the data has no test part
_SPLIT_SEED = 20_170_424  # never the recipe's: a sample is held out once and for all


def is_dataset(source: Any) -> bool:
    tensors = isinstance(source, Tensor) or (isinstance(source, tuple) and all(isinstance(x, Tensor) for x in source))
    return tensors or isinstance(source, Dataset)


class TensorSamples(Dataset[Any]):
    """Tensors of one length as samples."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        if len({len(x) for x in tensors}) != 1:
            raise InputError(f"the data's tensors have {[len(x) for x in tensors]} samples; give as many of each.")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, i: int) -> Any:
        rows = tuple(x[i] for x in self.tensors)
        return rows if len(rows) > 1 else rows[0]


class Divided(TensorSamples):
    """Samples of a source that has a test part of its own: none needs to be held out."""


def as_dataset(source: Any) -> Any:
    return (
        TensorSamples((source,) if isinstance(source, Tensor) else source)
        if isinstance(source, Tensor | tuple)
        else source
    )


def rows_of(source: Any, split: Split) -> Tensor:
    """The samples of a data set that belong to ``split``."""
    size = len(source)
    if isinstance(source, Divided) or getattr(source, "divided", False):
        return torch.arange(size)
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    rows = drawn[size // _HELD_OUT :] if split == "train" else drawn[: size // _HELD_OUT]
    return rows.sort().values
