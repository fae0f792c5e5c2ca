"""What tracing can be asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slim_model.errors import InputError
from slim_model.options import check_choices, option

_SPEC = re.compile(r"(?:[^=]+=)?-?\d+(?:,-?\d+)*")


@dataclass(frozen=True, slots=True)
class TracingOptions:
    """``static_batch``: the batch size is that of the example, also in the files that are written. ``dynamic``: further
    axes that may have any size there: ``"2,3"`` of the first input, ``"ids=1"`` of the one of that name; in Python also
    ``(2, 3)`` or ``{"ids": 1}``. ``random``: what becomes of a forward that draws random numbers: it is refused, or the
    ``mean`` of what it draws is taken. Raises InputError where one is none of these."""

    static_batch: bool = option(False, "Fix the batch size at that of --input.", negatable=False)
    dynamic: tuple[str, ...] = option(
        (), "Axes that may have any size, of the first input or of NAME (repeat).", metavar="[NAME=]2,3", many=True
    )
    random: str = option(
        "refuse", "A forward that draws random numbers: refuse it, or take their mean.", choices=("refuse", "mean")
    )

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "dynamic", tuple(_written(self.dynamic)))
        for text in self.dynamic:
            if not _SPEC.fullmatch(text):
                raise InputError(f"dynamic {text}: it is axes with commas between, such as 2,3 or ids=0,1.")
        if self.static_batch and self.frees_batch:
            raise InputError("dynamic names axis 0, the batch, and static_batch fixes it; leave out one.")

    @property
    def frees_batch(self) -> bool:
        """Whether axis 0 is asked to be free."""
        return any("0" in text.rpartition("=")[2].split(",") for text in self.dynamic)


def _written(given: Any) -> Iterable[str]:
    """As it is typed."""
    if isinstance(given, Mapping):
        return [f"{name}={_joined(axes)}" for name, axes in given.items()]
    if isinstance(given, str | int) or all(isinstance(part, int) for part in given):
        return [text] if (text := _joined(given)) else []
    return [str(part) for part in given]


def _joined(axes: Any) -> str:
    return ",".join(map(str, axes)) if isinstance(axes, Iterable) and not isinstance(axes, str) else str(axes)
