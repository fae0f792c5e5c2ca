"""What a user pays for, one row each in ``PRICES``, and the limit that was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim_model.errors import InputError

if TYPE_CHECKING:  # for types alone: the table is read without PyTorch
    import numpy as np

    from slim_model.cost.counted import CostModel

Counted = Callable[["CostModel", "np.ndarray | None"], float]

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "": 1.0}


@dataclass(frozen=True, slots=True)
class Price:
    """``of(meter, keep)``; None: it is measured. ``units``: what may stand behind a number, the first is shown by
    ``shown``. ``close``: a result is no more than this share below the limit. ``file``: the ONNX file counts."""

    name: str
    units: dict[str, float]
    shown: tuple[str, float]
    close: float = 0.02
    of: Counted | None = None
    file: bool = False
    estimated: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} (estimated)" if self.estimated else self.name

    def say(self, amount: float) -> str:
        """``2,044.10 M``, ``0.0498 M``, and ``70`` of what is shown in millions."""
        unit, size = self.shown
        number = amount / size
        if size > 1 and number < 0.001:
            return f"{amount:,.0f}"
        digits = "0f" if not unit else "2f" if number >= 1 else "3g"
        return f"{number:,.{digits}} {unit}".rstrip()


PRICES: dict[str, Price] = {
    price.name: price
    for price in (
        Price("channels", _COUNTS, ("", 1.0), of=lambda meter, keep: meter.channels(keep)),
        Price("macs", _COUNTS, ("M", 1e6), of=lambda meter, keep: meter(keep).macs),
        Price("params", _COUNTS, ("M", 1e6), of=lambda meter, keep: meter(keep).params),
        Price("bytes", _BYTES, ("MB", 1e6), of=lambda meter, keep: meter(keep).bytes, file=True),
        Price("memory", _BYTES, ("MB", 1e6), of=lambda meter, keep: meter.memory(keep), estimated=True),
        Price("energy", _COUNTS, ("M MACs", 1e6), of=lambda meter, keep: meter.energy(keep), estimated=True),
        Price("latency", {"ms": 1.0, "us": 1e-3, "s": 1e3, "": 1.0}, ("ms", 1.0), close=0.05),
    )
}


def price_of(name: str) -> Price:
    """The row of ``PRICES`` with this name; InputError names those that there are."""
    if name not in PRICES:
        raise InputError(f"there is no budget of '{name}'; it is one of {', '.join(PRICES)}.")
    return PRICES[name]


def read_target(text: str) -> tuple[Price, float]:
    """``'macs=1.0G'`` is 1e9 multiply-adds; ``params=2M``, ``bytes=5MB`` (5e6 bytes), ``latency=8ms``."""
    match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*", text)
    name, number, unit = match.groups() if match else ("", "0", "")
    price = PRICES.get(name)
    amount = float(number) * price.units.get(unit.lower(), 0.0) if price else 0.0
    if price is None or amount <= 0:
        raise InputError(
            f"target '{text}' is not like latency=8ms, macs=1.0G, params=2M or bytes=5MB. What can be limited: "
            f"{', '.join(PRICES)}."
        )
    return price, amount
