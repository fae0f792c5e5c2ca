"""A condition on the figures of a report, as it is typed: ``accuracy>=0.91``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slim_model.errors import InputError
from slim_model.reporting.headline import agreement_of, bytes_of, latency_of, speedup_of, tested_accuracy

_FORM = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
FIGURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "accuracy": tested_accuracy,
    "agreement": agreement_of,
    "speedup": speedup_of,
    "latency": latency_of,
    "macs": lambda report: float(report["slim"]["macs"]),
    "params": lambda report: float(report["slim"]["params"]),
    "bytes": bytes_of,
}
"""What may stand in a condition. ``accuracy`` and ``agreement`` are shares after the last step, ``latency`` is in ms
and ``speedup`` the lower end of its interval, both in onnxruntime; with ``bytes`` they are those of the file that was
written."""


@dataclass(frozen=True, slots=True)
class Condition:
    """``figure`` ``sign`` ``limit``."""

    figure: str
    sign: str
    limit: float

    def holds(self, report: Mapping[str, Any]) -> bool:
        """Whether ``report`` meets it; one that lacks the figure does not."""
        value = FIGURES[self.figure](report)
        return value is not None and _SIGNS[self.sign](value, self.limit)


def read_condition(text: str) -> Condition:
    """Raises InputError where ``text`` is none.

    >>> read_condition("accuracy >= 0.91")
    Condition(figure='accuracy', sign='>=', limit=0.91)
    """
    match = _FORM.fullmatch(text)
    try:
        figure, sign, limit = match.groups() if match else ("", "", "")
        if figure not in FIGURES:
            raise ValueError(figure)
        return Condition(figure, sign, float(limit))
    except ValueError:
        raise InputError(
            f"'{text}' is no condition. Write one of {', '.join(FIGURES)}, then >=, <=, > or <, then a number, such as "
            "'accuracy>=0.91'."
        ) from None
