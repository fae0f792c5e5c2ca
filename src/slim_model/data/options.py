"""Where samples come from, and how many are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim_model.errors import InputError
from slim_model.late import Late
from slim_model.options import Move, move_code, option, read_numbers

SOURCES: dict[str, Callable[..., Any]] = {
    "mnist": Late("data.sources:mnist"),
    "fashion-mnist": Late("data.sources:fashion_mnist"),
    "cifar10": Late("data.sources:cifar10"),
    "imagefolder": Late("data.pictures:imagefolder"),
    "yolo": Late("data.pictures:yolo"),
    "npz": Late("data.sources:npz"),
    "csv": Late("data.sources:text"),
    "tsv": Late("data.sources:text"),
    "text": Late("data.plain_text:text"),
}
"""What may stand ahead of the colon in ``--data KIND:PLACE``."""


SAMPLES = 1024
"""That are read where nothing says how many."""


def _move_data(spec: str, how: Move) -> str:
    """The paths in ``KIND:PLACE[,option=value]`` or ``file.py:callable`` changed by ``how``."""
    kind, _, rest = spec.partition(":")
    if kind not in SOURCES:
        return move_code(spec, how)
    place, *options = rest.split(",")
    options = [f"{name}{sign}{move_code(value, how)}" for name, sign, value in (o.partition("=") for o in options)]
    return f"{kind}:{','.join([how(place), *options])}"


@dataclass(frozen=True, slots=True)
class DataOptions:
    """``data``: what ``data.open_data.open_data`` takes, of which ``samples`` are read in batches of ``batch``,
    normalised by ``mean`` and ``std``; accuracy is read from ``test_samples`` of its test part."""

    data: Any = option(
        None,
        f"Samples for criteria that need some: {', '.join(f'{kind}:PLACE' for kind in SOURCES)}, or "
        "package.module:callable.",
        metavar="SPEC",
        move=_move_data,
        basic=True,
    )
    samples: int | None = option(
        None, "How many of them are read. Default: 1,024; see --effort.", kind=int, metavar="N", least=1
    )
    test_samples: int = option(1000, "Of its test part, how many accuracy is read from.", least=1)
    batch: int = option(64, "How many at a time.", least=1)
    mean: tuple[float, ...] = option(
        (), "Taken from the input, one number or one per channel.", metavar="X,...", read=read_numbers
    )
    std: tuple[float, ...] = option((), "The input is divided by it.", metavar="X,...", read=read_numbers)

    @property
    def calibrating(self) -> int:
        """How many samples are read to calibrate on."""
        return SAMPLES if self.samples is None else self.samples

    def __post_init__(self) -> None:
        if self.calibrating < 1 or self.batch < 1 or self.test_samples < 1:
            raise InputError(
                f"samples {self.calibrating}, test_samples {self.test_samples} and batch {self.batch} must be at "
                "least 1."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not all(math.isfinite(x) for x in values) or (name == "std" and not all(x > 0 for x in values)):
                more = " above 0" if name == "std" else ""
                raise InputError(f"{name} {','.join(map(str, values))}: give finite numbers{more}.")
