"""The ways to write a layer as several in a row, one row each in ``FORMS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim_model.late import Late


@dataclass(frozen=True, slots=True)
class Form:
    """``fits(kernel, padding)``: whether layers with this kernel take it; ``split(layer, *moments)`` gives the
    ``Split`` of one, which with all ranks computes the same; ``observes``: what the moments are of (rows of
    ``OBSERVED``)."""

    name: str
    fits: Callable[[tuple[int, ...], Any], bool]
    split: Callable[..., Any]
    observes: tuple[str, ...] = ("outputs",)


def _is_point(kernel: tuple[int, ...], padding: Any) -> bool:
    return set(kernel) <= {1}


def _is_wide(kernel: tuple[int, ...], padding: Any) -> bool:
    return not _is_point(kernel, padding)


def _is_map(kernel: tuple[int, ...], padding: Any) -> bool:
    return len(kernel) == 2 and min(kernel) > 1 and not isinstance(padding, str)


def _is_map_or_line(kernel: tuple[int, ...], padding: Any) -> bool:
    return len(kernel) <= 2 and _is_wide(kernel, padding)


_BY_OUTPUTS = Late("factoring.principal:split_by_outputs")

FORMS: dict[str, Form] = {
    row.name: row
    for row in (
        Form("svd", _is_point, _BY_OUTPUTS),
        Form("channel", _is_wide, _BY_OUTPUTS),
        Form("spatial", _is_map, Late("factoring.spatial:split_by_columns"), ("columns",)),
        Form("decoupled", _is_map_or_line, Late("factoring.decoupled:split_each_input"), ("patches",)),
        Form("tucker", _is_wide, Late("factoring.tucker:split_both_sides"), ("outputs", "inputs")),
    )
}
