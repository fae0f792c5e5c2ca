"""Whatever the user calls data -> batches that fit the model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from slim_model.data.batches import Batch, Data, Preparation
from slim_model.data.datasets import Split, as_dataset, is_dataset, rows_of
from slim_model.data.sources import open_spec
from slim_model.data.user_faults import check_is_data, made_by, read_each, user_faults
from slim_model.errors import InputError
from slim_model.graph.tensor_trees import batch_of, not_finite, tensors_among

_STREAMED = 64  # samples of a stream that are put together


def open_data(
    source: Any,
    example: Sequence[Any],
    *,
    samples: int = 1024,
    batch: int = 64,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    seed: int = 0,
    split: Split = "train",
    fixed_batch: bool = False,
    names: Sequence[str] = (),
) -> Data:
    """``source``: a SPEC such as ``mnist:DIR`` (see ``data.sources``), a tensor, ``(inputs, labels)`` tensors, a
    data set, a DataLoader, any iterable of batches, or a callable that returns one of these.

    A batch is the model's inputs, or those and labels. ``example`` are inputs of the model: they tell how many there
    are and of what shape. ``mean`` and ``std`` normalise the first input, one number a channel; bytes are divided by
    255 first. ``names`` of the inputs, by which a dict is read. ``fixed_batch``: the model takes just the
    example's batch size.
    """
    if samples < 1 or batch < 1:
        raise InputError(f"samples {samples} and batch {batch} must be at least 1.")
    size = batch_of(tuple(example)) if fixed_batch else batch
    opened = read_source(source, example, split)
    name, source = opened.name, opened.samples
    # A generator can be read once, and several stages read the data: what it gives is kept.
    if isinstance(source, Iterator):
        source = _kept(read_each(name, lambda: opened.samples), samples)
    parted = is_dataset(source)
    prepare = Preparation(name, tuple(example), tuple(mean), tuple(std), tuple(names))
    # A data set is drawn from, so that its first classes are not all there is; a stream is taken from its beginning.
    if parted:
        with user_faults(name, "counting its samples"):
            source = _chosen(source, samples, seed, split)
        limit = min(samples, len(source))
        raw: Callable[[], Iterator[Any]] = lambda: _collated(source, size)  # noqa: E731
    else:
        limit = samples
        raw = lambda: iter(source)  # noqa: E731

    def batches() -> Iterator[Batch]:
        return _finite(_sized((prepare(item) for item in read_each(name, raw)), size, limit), name, source)

    # One batch is read now, so that what is wrong with the data is said before any work.
    first = next(batches(), None)
    if first is None and parted and split == "test" and len(source.dataset):
        raise InputError(
            f"{name} has {len(source.dataset)} samples, of which every fifth is held out to read accuracy from. Give 5 "
            "or more."
        )
    if first is None:
        raise InputError(f"{name} is empty: it gave no batch.")
    labelled = first.labels is not None
    known = _known_labels(source) if parted and labelled else None
    return Data(name, batches, labelled, limit, parted, known)


@dataclass(frozen=True, slots=True)
class OpenedData:
    """A source that was read or made: what messages call it, and its samples."""

    name: str
    samples: Any


def read_source(source: Any, example: Sequence[Any], split: Split) -> OpenedData:
    """Read or make the part ``split`` of ``source``, where it only says how; one that was opened is left as it is."""
    if isinstance(source, OpenedData):
        return source
    if isinstance(source, str):
        return _opened(source, open_spec(source, example, split))
    name = f"the data ({type(source).__name__})"
    if callable(source) and not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        source = made_by(name, source)
    return _opened(name, source)


def _opened(name: str, source: Any) -> OpenedData:
    check_is_data(name, source)
    if isinstance(source, IterableDataset):  # it gives samples one by one, and cannot be asked for those of a part
        from torch.utils.data import DataLoader

        source = DataLoader(source, batch_size=_STREAMED)
    return OpenedData(name, source)


def _kept(source: Iterator[Any], samples: int) -> list[Any]:
    """A generator can be read once; its batches are kept, since several passes may be needed."""
    kept, seen = [], 0
    for item in source:
        kept.append(item)
        rows = [len(x) for x in tensors_among(item) if x.dim()]
        seen += rows[0] if rows else 0
        if seen >= samples:
            break
    return kept


def _chosen(source: Any, samples: int, seed: int, split: Split) -> Subset[Any]:
    """``samples`` of the part of ``source`` that may be used, in the order drawn by ``seed``."""
    source = as_dataset(source)
    rows = rows_of(source, split)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return Subset(source, rows[order[:samples]].tolist())


def _known_labels(source: Subset[Any]) -> Callable[[], Tensor] | None:
    """The labels of its samples, where its data set has ``labels_of(rows)``."""
    labels_of = getattr(source.dataset, "labels_of", None)
    return None if labels_of is None else lambda: labels_of(source.indices)


def _collated(source: Subset[Any], batch: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    return iter(DataLoader(source, batch_size=batch))


def _finite(batches: Iterator[Batch], name: str, source: Any) -> Iterator[Batch]:
    """The same batches; raises InputError at the first sample that holds NaN or infinity, by its number in the data."""
    number = 0
    for batch in batches:
        for x in batch.inputs:
            if not_finite(x):
                first = int(
                    torch.isfinite(x.flatten(1) if x.dim() > 1 else x[:, None]).all(1).logical_not().nonzero()[0]
                )
                sample = source.indices[number + first] if isinstance(source, Subset) else number + first
                raise InputError(f"{name}: sample {sample} (from 0) holds NaN or infinity. Mend it, or leave it out.")
        number += batch.samples
        yield batch


def _sized(batches: Iterator[Batch], size: int, limit: int) -> Iterator[Batch]:
    """No batch larger than ``size``, no more than ``limit`` samples."""
    left = limit
    for whole in batches:
        for part in whole.split(size):
            if left > 0:
                yield part[: min(left, part.samples)]
                left -= part.samples
        if left <= 0:
            return
