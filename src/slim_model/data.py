"""data: what the user gives after ``--data``, or in Python, as a stream of batches for calibration.

Data with a split of its own gives its training part; of any other, every fifth sample (drawn by a fixed seed) is the
test part and never enters calibration. Which samples are taken, and their order, follow from the recipe's seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, Subset

from slim_model.errors import InputError
from slim_model.trace import Graph

Split = Literal["train", "test"]
_HELD_OUT = 5  # one sample in so many, where the data has no test part
_SPLIT_SEED = 20_170_424  # never the recipe's: a sample is held out once and for all


@dataclass(frozen=True, slots=True)
class Batch:
    """``inputs``: the model's inputs, flattened; ``labels`` or None; ``samples`` of them count."""

    inputs: tuple[Any, ...]
    labels: Tensor | None
    samples: int

    def split(self, size: int) -> list[Batch]:
        return [self[i : i + size] for i in range(0, self.samples, size)]

    def __getitem__(self, rows: slice) -> Batch:
        inputs = tuple(x[rows] if isinstance(x, Tensor) and x.dim() else x for x in self.inputs)
        count = len(range(*rows.indices(self.samples)))
        return Batch(inputs, None if self.labels is None else self.labels[rows], count)


@dataclass(frozen=True, slots=True)
class Data:
    """``batches()`` starts a pass and may be called again. ``samples``: how many a pass gives at most. ``parted``: the
    source has samples of its other split, too."""

    name: str
    batches: Callable[[], Iterator[Batch]]
    labelled: bool
    samples: int
    parted: bool = False


def padded(batch: Batch, graph: Graph) -> Batch:
    """A graph whose batch is fixed takes a short last batch filled up with copies, which are not counted."""
    wanted = next((x.shape[0] for x in graph.inputs if isinstance(x, Tensor) and x.dim()), 1)
    if graph.dynamic_batch or batch.samples == wanted:
        return batch
    if batch.samples > wanted:
        raise InputError(f"the model takes batches of {wanted}, and the data has one of {batch.samples}.")

    def filled(x: Any) -> Any:
        return torch.cat([x, x[-1:].expand(wanted - len(x), *x.shape[1:])]) if isinstance(x, Tensor) else x

    return dataclasses.replace(batch, inputs=tuple(map(filled, batch.inputs)))


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
) -> Data:
    """``source``: a SPEC such as ``mnist:DIR`` (see ``slim_model.specs``), a tensor, ``(inputs, labels)`` tensors, a
    data set, a DataLoader, any iterable of batches, or a callable that returns one of these.

    A batch is the model's inputs, or those and labels. ``example`` are inputs of the model: they tell how many there
    are and of what shape. ``mean`` and ``std`` normalise the first input, one number a channel; bytes are divided by
    255 first. ``fixed_batch``: the model takes just the example's batch size.
    """
    if samples < 1 or batch < 1:
        raise InputError(f"samples {samples} and batch {batch} must be at least 1.")
    size = next((x.shape[0] for x in example if isinstance(x, Tensor) and x.dim()), batch) if fixed_batch else batch
    name, source = opened(source, example, split)
    if isinstance(source, Iterator):
        source = _kept(source, samples)
    parted = is_dataset(source)
    prepare = Preparation(name, tuple(example), tuple(mean), tuple(std))
    if parted:
        source = _chosen(source, samples, seed, split)
        limit = min(samples, len(source))
        raw: Callable[[], Iterator[Any]] = lambda: _collated(source, size)  # noqa: E731
    else:
        limit = samples
        raw = lambda: iter(source)  # noqa: E731

    def batches() -> Iterator[Batch]:
        return _sized((prepare(item) for item in raw()), size, limit)

    first = next(batches(), None)
    if first is None:
        raise InputError(f"{name} is empty: it gave no batch.")
    return Data(name, batches, first.labels is not None, limit, parted)


def opened(source: Any, example: Sequence[Any], split: Split) -> tuple[str, Any]:
    """What messages call the data, and the data itself, read or made where ``source`` only says how."""
    if isinstance(source, str):
        from slim_model.specs import open_spec

        return source, open_spec(source, example, split)
    name = f"the data ({type(source).__name__})"
    if callable(source) and not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        source = source()
    return name, source


def _kept(source: Iterator[Any], samples: int) -> list[Any]:
    """A generator can be read once; its batches are kept, since several passes may be needed."""
    kept, seen = [], 0
    for item in source:
        kept.append(item)
        leaves = [x for x in pytree.tree_leaves(item) if isinstance(x, Tensor) and x.dim()]
        seen += len(leaves[0]) if leaves else 0
        if seen >= samples:
            break
    return kept


def is_dataset(source: Any) -> bool:
    tensors = isinstance(source, Tensor) or (isinstance(source, tuple) and all(isinstance(x, Tensor) for x in source))
    return tensors or isinstance(source, Dataset)


class Rows(Dataset[Any]):
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


class Divided(Rows):
    """Samples of a source that has a test part of its own: none needs to be held out."""


def _chosen(source: Any, samples: int, seed: int, split: Split) -> Subset[Any]:
    """``samples`` of the part of ``source`` that may be used, in the order drawn by ``seed``."""
    source = as_dataset(source)
    rows = rows_of(source, split)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return Subset(source, rows[order[:samples]].tolist())


def as_dataset(source: Any) -> Any:
    return Rows((source,) if isinstance(source, Tensor) else source) if isinstance(source, Tensor | tuple) else source


def rows_of(source: Any, split: Split) -> Tensor:
    """The samples of a data set that belong to ``split``."""
    size = len(source)
    if isinstance(source, Divided) or getattr(source, "divided", False):
        return torch.arange(size)
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    rows = drawn[size // _HELD_OUT :] if split == "train" else drawn[: size // _HELD_OUT]
    return rows.sort().values


def _collated(source: Subset[Any], batch: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    return iter(DataLoader(source, batch_size=batch))


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


@dataclass(frozen=True, slots=True)
class Preparation:
    """From what a source gives to a Batch that fits the model."""

    name: str
    example: tuple[Any, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, item: Any) -> Batch:
        given, labels = self._parted(item)
        pairs = enumerate(zip(given, self.example, strict=True))
        inputs = tuple(self._fitting(x, like, i == 0) for i, (x, like) in pairs)
        samples = next((len(x) for x in inputs if isinstance(x, Tensor) and x.dim()), 1)
        if labels is not None:
            labels = torch.as_tensor(labels)
            if labels.dim() == 0 or len(labels) != samples:
                raise InputError(f"{self.name} gave {tuple(labels.shape)} labels for {samples} samples.")
        return Batch(inputs, labels, samples)

    def _parted(self, item: Any) -> tuple[list[Any], Any]:
        """Inputs and labels: labels are what comes behind the inputs, or bear the name."""
        labels = None
        if isinstance(item, dict):
            item = dict(item)
            labels = next((item.pop(key) for key in ("labels", "label", "y", "target") if key in item), None)
        leaves = [torch.as_tensor(x) if hasattr(x, "__array__") else x for x in pytree.tree_leaves(item)]
        wanted = len(self.example)
        if len(leaves) == wanted + 1 and labels is None:
            return leaves[:-1], leaves[-1]
        if len(leaves) != wanted:
            raise InputError(
                f"{self.name} gave batches of {len(leaves)} values; the model has {wanted} inputs. "
                "Give batches of the inputs, or of the inputs and labels."
            )
        return leaves, labels

    def _fitting(self, x: Any, like: Any, first: bool) -> Any:
        if not isinstance(like, Tensor):
            return like
        if not isinstance(x, Tensor) or x.shape[1:] != like.shape[1:]:
            given = "x".join(map(str, x.shape[1:])) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"{self.name} gave samples of {given or 'no size'}; the model's input is "
                f"{'x'.join(map(str, like.shape[1:])) or 'one number'} each. Give data of that size, "
                "or the size of the data as --input."
            )
        if like.is_floating_point() and x.dtype == torch.uint8:
            x = x.float() / 255
        x = x.to(like)
        return self._normalised(x) if first and (self.mean or self.std) else x

    def _normalised(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise InputError(f"mean and std do not apply to {self.name}: its values are {x.dtype}.")
        shape = [1, -1, *[1] * (x.dim() - 2)]
        mean, std = torch.tensor(self.mean or (0.0,)).to(x), torch.tensor(self.std or (1.0,)).to(x)
        if x.dim() < 2 or any(len(v) not in (1, x.shape[1]) for v in (mean, std)) or bool((std == 0).any()):
            raise InputError(
                f"mean {self.mean} and std {self.std} do not fit {tuple(x.shape[1:])}: give one number, or one for "
                "each channel, and no std of 0."
            )
        return (x - mean.view(shape)) / std.view(shape)
