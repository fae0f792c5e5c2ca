"""samples: training data that can be read in any order, with pictures varied at random.

One sample in ten, drawn by the recipe's seed and at most ``_VALIDATION``, is kept apart to choose the best epoch by; it
is never trained on, and the test part is not in here at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from slim_model.data import Batch, Preparation, Rows, as_dataset, is_dataset, opened, rows_of
from slim_model.errors import InputError

_SHARE = 10
_VALIDATION = 2000
_VARIED = ("crop", "flip", "cutmix")
AUGMENT = ("auto", "none", *_VARIED)
"""The last ones may be joined by +."""
Transform = Callable[[Tensor], Tensor]


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

    def batches(self, places: Sequence[Tensor], augment: Transform | None = None) -> Iterator[Batch]:
        """Those at ``places``, each a list of positions in ``rows``; ``augment`` is applied to each first input."""
        if isinstance(self.source, Rows):
            for place in places:
                item = tuple(x[self.rows[place]] for x in self.source.tensors)
                if augment is not None:
                    item = (torch.stack([augment(x) for x in item[0]]), *item[1:])
                yield self.prepare(item if len(item) > 1 else item[0])
            return
        chosen = Subset(self.source, self.rows.tolist())
        collate = default_collate if augment is None else _Augmented(augment)
        for item in DataLoader(chosen, batch_sampler=[p.tolist() for p in places], collate_fn=collate):
            yield self.prepare(item)


@dataclass(frozen=True, slots=True)
class _Augmented:
    augment: Transform

    def __call__(self, items: list[Any]) -> Any:
        return default_collate([self._first(item) for item in items])

    def _first(self, item: Any) -> Any:
        if isinstance(item, dict):
            name = next(iter(item))
            return item | {name: self.augment(torch.as_tensor(item[name]))}
        if isinstance(item, tuple | list):
            return (self.augment(torch.as_tensor(item[0])), *item[1:])
        return self.augment(torch.as_tensor(item))


def open_samples(
    source: Any, example: Sequence[Any], *, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> Samples:
    """The training part of ``source``, which may be all that ``data.open_data`` takes. A stream of batches is read
    once, and kept."""
    name, found = opened(source, example, "train")
    prepare = Preparation(name, tuple(example), tuple(mean), tuple(std))
    whole = isinstance(found, DataLoader) and found.collate_fn is default_collate  # has no test part of its own
    if whole:
        found = found.dataset
    if not is_dataset(found):
        batches = [prepare(item) for item in found]
        if not batches:
            raise InputError(f"{name} is empty: it gave no batch.")
        return _kept(batches, example)
    found = as_dataset(found)
    rows = torch.arange(len(found)) if whole else rows_of(found, "train")
    samples = Samples(found, rows, prepare, False)
    first = next(samples.batches([torch.arange(min(1, len(rows)))]))
    return dataclasses.replace(samples, labelled=first.labels is not None)


def _kept(batches: list[Batch], example: Sequence[Any]) -> Samples:
    labelled = all(batch.labels is not None for batch in batches)
    columns = list(zip(*(batch.inputs for batch in batches), strict=True))
    if labelled:
        columns.append(tuple(batch.labels for batch in batches))
    if not all(isinstance(x, Tensor) and x.dim() for column in columns for x in column):
        raise InputError("to train on batches whose inputs are not all tensors, give a data set instead of a stream.")
    source = Rows(tuple(torch.cat(column) for column in columns))
    kept = Preparation("the data (a stream of batches)", tuple(example), (), ())
    return Samples(source, torch.arange(len(source)), kept, labelled)


# -- pictures varied at random --------------------------------------------------------------------------------------


def check_augment(wanted: str | Transform) -> None:
    if not callable(wanted) and wanted not in AUGMENT and not set(wanted.split("+")) <= set(_VARIED):
        raise InputError(
            f"augment '{wanted}' is unknown; it is one of {', '.join(AUGMENT)}, the last three also joined by +, as in "
            "crop+flip, or a callable."
        )


def varied(wanted: str | Transform, example: Sequence[Any]) -> tuple[str, ...]:
    """What is done at random, by name. ``auto``: pictures in colour are moved by up to an eighth and mirrored; anything
    else is left as it is (a grey picture may be a letter or a digit)."""
    if callable(wanted):
        return ()
    first = example[0] if example and isinstance(example[0], Tensor) else torch.empty(0)
    picture = first.dim() == 4 and first.is_floating_point() and first.shape[1] in (1, 3)
    if wanted == "auto":
        wanted = "crop+flip" if picture and first.shape[1] == 3 else "none"
    if wanted == "none":
        return ()
    if not picture:
        raise InputError(f"augment '{wanted}' is for pictures; the model's input is {tuple(first.shape[1:])}.")
    return tuple(wanted.split("+"))


def augmentation(wanted: str | Transform, example: Sequence[Any]) -> Transform | None:
    """Of ``varied``, what is done to one picture (channels, height, width); or the callable given for that."""
    if callable(wanted):
        return wanted
    names = varied(wanted, example)
    if not names:
        return None
    from torchvision.transforms import v2

    height, width = example[0].shape[2:]
    crop = v2.RandomCrop((height, width), padding=[max(1, width // 8), max(1, height // 8)])
    each = {"crop": crop, "flip": v2.RandomHorizontalFlip()}
    steps = [each[name] for name in names if name in each]
    return v2.Compose(steps) if steps else None


def cut_mixed(x: Tensor) -> Tensor:
    """Pictures ``(samples, channels, height, width)``, each with a box of another in it, anywhere, whose share of the
    area is drawn evenly from 0 to 1 (Yun et al., CutMix, ICCV 2019)."""
    side = torch.rand(len(x)).sqrt()
    down, across = (
        (torch.arange(size) - (torch.rand(len(x)) * size)[:, None]).abs() < (side * size / 2)[:, None]
        for size in x.shape[2:]
    )
    box = (down[:, :, None] & across[:, None, :])[:, None].to(x.device)
    return torch.where(box, x[torch.randperm(len(x))], x)
