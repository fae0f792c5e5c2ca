"""What the user gives after ``--data``, or in Python, as a stream of batches for calibration.

Data with a split of its own gives its training part; of any other, every fifth sample (drawn by a fixed seed) is the
test part and never enters calibration. Which samples are taken, and their order, follow from the recipe's seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from slim_model.calling.nesting import leaves_of
from slim_model.errors import InputError
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import batch_of, not_finite


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
    source has samples of its other split, too. ``known_labels()``: those of a pass, where the source has them without
    reading samples."""

    name: str
    batches: Callable[[], Iterator[Batch]]
    labelled: bool
    samples: int
    parted: bool = False
    known_labels: Callable[[], Tensor] | None = None


def pad_batch(batch: Batch, graph: Graph) -> Batch:
    """A graph whose batch is fixed takes a short last batch filled up with copies, which are not counted."""
    size = batch_of(graph.inputs)
    if graph.dynamic_batch or batch.samples == size:
        return batch
    if batch.samples > size:
        raise InputError(f"the model takes batches of {size}, and the data has one of {batch.samples}.")

    def filled(x: Any) -> Any:
        return torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]) if isinstance(x, Tensor) else x

    return dataclasses.replace(batch, inputs=tuple(map(filled, batch.inputs)))


@dataclass(frozen=True, slots=True)
class Preparation:
    """From what a source gives to a Batch that fits the model. ``names`` of its inputs: a dict with these keys (nested
    ones joined by dots) is put in their order."""

    name: str
    example: tuple[Any, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = ()

    def __call__(self, item: Any) -> Batch:
        given, labels = self._parted(item)
        pairs = enumerate(zip(given, self.example, strict=True))
        inputs = tuple(self._fitting(x, like, i == 0) for i, (x, like) in pairs)
        samples = batch_of(inputs)
        if labels is not None:
            labels = self._numbers(labels)
            if labels.dim() == 0 or len(labels) != samples:
                raise InputError(f"{self.name} gave {tuple(labels.shape)} labels for {samples} samples.")
        return Batch(inputs, labels, samples)

    def _numbers(self, labels: Any) -> Tensor:
        try:
            numbers = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.name} gave labels that are no numbers. Give class numbers from 0.") from error
        if numbers.is_complex() or not_finite(numbers):
            raise InputError(f"{self.name} gave labels that are complex, NaN or infinite. Give class numbers from 0.")
        return numbers

    def _parted(self, item: Any) -> tuple[list[Any], Any]:
        """Inputs and labels: labels are what comes behind the inputs, or bear the name."""
        labels = None
        if isinstance(item, Mapping):
            item = dict(item)
            labelled = [key for key in ("labels", "label", "y", "target") if key in item and key not in self.names]
            labels = item.pop(labelled[0]) if labelled else None
            item = self._in_order(item)
        leaves = [torch.as_tensor(x) if hasattr(x, "__array__") else x for x in pytree.tree_leaves(item)]
        inputs = len(self.example)
        if len(leaves) == inputs + 1 and labels is None:
            return leaves[:-1], leaves[-1]
        if len(leaves) != inputs:
            raise InputError(
                f"{self.name} gave batches of {len(leaves)} values; the model has {inputs} inputs. "
                "Give batches of the inputs, or of the inputs and labels."
            )
        return leaves, labels

    def _in_order(self, item: dict[str, Any]) -> Any:
        """Values in the order of the model's inputs, and what else there is behind them; a dict that has none of their
        names as it is."""
        by_name = {".".join(leaf.path): leaf.value for leaf in leaves_of(item)}
        whole = {name.partition(".")[0] for name in self.names}
        names = self.names
        if len(whole) == 1 and not by_name.keys() & set(names):  # forward takes the dict as it is
            names = tuple(name.partition(".")[2] for name in names)
        if not by_name.keys() & set(names):
            return item
        if missing := [name for name in names if name not in by_name]:
            raise InputError(
                f"{self.name} gave batches of {', '.join(map(str, by_name))}; the model's input '{missing[0]}' is not "
                "among them."
            )
        return [by_name[name] for name in (*names, *(name for name in by_name if name not in names))]

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
        if x.is_complex():
            raise InputError(f"{self.name} gave complex numbers; the model takes {str(like.dtype).partition('.')[2]}.")
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
