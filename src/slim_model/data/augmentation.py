"""Augmentation of training pictures: random crops, flips, CutMix."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from slim_model.errors import InputError

Transform = Callable[[Tensor], Tensor]


def choose_augmentations(asked: str | Transform, example: Sequence[Any]) -> tuple[str, ...]:
    """The names of the random augmentations. ``auto``: ``crop`` (by up to an eighth) and ``flip`` for pictures in
    colour, none for anything else (a grey picture may be a letter or a digit)."""
    if callable(asked):
        return ()
    first = example[0] if example and isinstance(example[0], Tensor) else torch.empty(0)
    picture = first.dim() == 4 and first.is_floating_point() and first.shape[1] in (1, 3)
    if asked == "auto":
        asked = "crop+flip" if picture and first.shape[1] == 3 else "none"
    if asked == "none":
        return ()
    if not picture:
        raise InputError(f"augment '{asked}' is for pictures; the model's input is {tuple(first.shape[1:])}.")
    return tuple(asked.split("+"))


def augmentation_of(asked: str | Transform, example: Sequence[Any]) -> Transform | None:
    """What these augmentations do to one picture (channels, height, width); or the callable given for that."""
    if callable(asked):
        return asked
    names = choose_augmentations(asked, example)
    if not names:
        return None
    from torchvision.transforms import v2

    height, width = example[0].shape[2:]
    crop = v2.RandomCrop((height, width), padding=[max(1, width // 8), max(1, height // 8)])
    each = {"crop": crop, "flip": v2.RandomHorizontalFlip()}
    steps = [each[name] for name in names if name in each]
    return v2.Compose(steps) if steps else None


def cut_mix(x: Tensor) -> Tensor:
    """Pictures ``(samples, channels, height, width)``, each with a box of another in it, anywhere, whose share of the
    area is drawn evenly from 0 to 1 (Yun et al., CutMix, ICCV 2019)."""
    side = torch.rand(len(x)).sqrt()
    down, across = (
        (torch.arange(size) - (torch.rand(len(x)) * size)[:, None]).abs() < (side * size / 2)[:, None]
        for size in x.shape[2:]
    )
    box = (down[:, :, None] & across[:, None, :])[:, None].to(x.device)
    return torch.where(box, x[torch.randperm(len(x))], x)


@contextlib.contextmanager
def fixed_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Whatever is random follows from ``seed``; the user's own random numbers go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
