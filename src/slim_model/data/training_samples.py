"""Training data that can be read in any order, with pictures varied at random.

One sample in ten, drawn by the recipe's seed and at most ``_VALIDATION``, is kept apart to choose the best epoch by; it
is never trained on, and the test part is not in here at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from slim_model.data.augmentation import Transform
from slim_model.data.batches import Batch, Preparation
from slim_model.data.datasets import TensorSamples, as_dataset, is_dataset, rows_of
from slim_model.data.open_data import read_source
from slim_model.data.user_faults import read_each, user_faults
from slim_model.errors import InputError

_SHARE = 10
_VALIDATION = 2000


@dataclass(frozen=True, slots=True)
class Samples:
    """``rows`` of ``source``; of each ``prepare`` makes what the model takes."""

    source: Any
    rows: Tensor
    prepare: Preparation
    labelled: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        return self.prepare.name

    def divided(self, seed: int) -> tuple[Samples, Samples]:
        """(what is trained on, what the best epoch is chosen by)."""
        count = min(len(self) // _SHARE, _VALIDATION)
        if count == 0:
            raise InputError(f"{self.name} has {len(self)} samples to train on; fine-tuning needs at least {_SHARE}.")
        order = self.rows[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))]
        parts = order[count:].sort().values, order[:count].sort().values
        train, validation = (dataclasses.replace(self, rows=rows) for rows in parts)
        return train, validation

    def batches(self, chosen: Sequence[Tensor], augment: Transform | None = None) -> Iterator[Batch]:
        """A batch for each of ``chosen``, indices into ``rows``; ``augment`` is applied to each first input."""
        if isinstance(self.source, TensorSamples):
            for indices in chosen:
                item = tuple(x[self.rows[indices]] for x in self.source.tensors)
                if augment is not None:
                    item = (torch.stack([augment(x) for x in item[0]]), *item[1:])
                yield self.prepare(item if len(item) > 1 else item[0])
            return
        subset = Subset(self.source, self.rows.tolist())
        collate = default_collate if augment is None else _Augmented(augment, self.prepare.names)
        loader = DataLoader(subset, batch_sampler=[indices.tolist() for indices in chosen], collate_fn=collate)
        for item in read_each(self.name, lambda: loader):
            yield self.prepare(item)


@dataclass(frozen=True, slots=True)
class _Augmented:
    augment: Transform
    names: tuple[str, ...] = ()

    def __call__(self, items: list[Any]) -> Any:
        return default_collate([self._first(item) for item in items])

    def _first(self, item: Any) -> Any:
        if isinstance(item, dict):
            name = next((name for name in self.names if name in item), next(iter(item)))
            return item | {name: self.augment(torch.as_tensor(item[name]))}
        if isinstance(item, tuple | list):
            return (self.augment(torch.as_tensor(item[0])), *item[1:])
        return self.augment(torch.as_tensor(item))


def open_samples(
    source: Any,
    example: Sequence[Any],
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    names: Sequence[str] = (),
) -> Samples:
    """The training part of ``source``, which may be all that ``data.open_data`` takes. A stream of batches is read
    once, and kept."""
    opened = read_source(source, example, "train")
    name, samples = opened.name, opened.samples
    prepare = Preparation(name, tuple(example), tuple(mean), tuple(std), tuple(names))
    whole = _is_plain_loader(samples)  # has no test part of its own
    if whole:
        samples = samples.dataset  # in an order of ours, in batches of ours
    if not is_dataset(samples):  # a stream
        batches = [prepare(item) for item in read_each(name, lambda: samples)]
        if not batches:
            raise InputError(f"{name} is empty: it gave no batch.")
        return _kept(batches, example)
    dataset = as_dataset(samples)
    with user_faults(name, "counting its samples"):
        rows = torch.arange(len(dataset)) if whole else rows_of(dataset, "train")
    unread = Samples(dataset, rows, prepare, False)
    first = next(unread.batches([torch.arange(min(1, len(rows)))]))
    return dataclasses.replace(unread, labelled=first.labels is not None)


def _is_plain_loader(source: Any) -> bool:
    """A loader over samples that have numbers."""
    plain = isinstance(source, DataLoader) and source.collate_fn is default_collate
    return plain and not isinstance(source.dataset, IterableDataset)


def _kept(batches: list[Batch], example: Sequence[Any]) -> Samples:
    labelled = all(batch.labels is not None for batch in batches)
    columns = list(zip(*(batch.inputs for batch in batches), strict=True))
    if labelled:
        columns.append(tuple(batch.labels for batch in batches))
    if not all(isinstance(x, Tensor) and x.dim() for column in columns for x in column):
        raise InputError("to train on batches whose inputs are not all tensors, give a data set instead of a stream.")
    source = TensorSamples(tuple(torch.cat(column) for column in columns))
    kept = Preparation("the data (a stream of batches)", tuple(example), (), ())
    return Samples(source, torch.arange(len(source)), kept, labelled)
