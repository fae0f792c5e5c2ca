"""The ways to write a layer as several in a row, one row each in ``FORMS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim_model.late import Late


@dataclass(frozen=True, slots=True)
class Form:
    """``split(layer, moments)`` gives the ``Split`` of a layer; with all ranks it computes the same. ``kernels``: it
    takes layers whose kernel is larger than 1; else linear layers and 1x1 convolutions."""

    name: str
    kernels: bool
    split: Callable[..., Any]


FORMS: dict[str, Form] = {
    row.name: row
    for row in (
        Form("svd", False, Late("factoring.principal:split_by_outputs")),
        Form("channel", True, Late("factoring.principal:split_by_outputs")),
    )
}
