"""The ways to write a layer as several in a row, one row each in ``FORMS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim_model.late import Late


@dataclass(frozen=True, slots=True)
class Form:
    """``fits(kernel, padding)``: whether layers with this kernel take it; ``split(layer, moments)`` gives the ``Split``
    of one, which with all ranks computes the same; ``observes``: what ``moments`` are of (a row of ``OBSERVED``)."""

    name: str
    fits: Callable[[tuple[int, ...], Any], bool]
    observes: str
    split: Callable[..., Any]


def _is_map(kernel: tuple[int, ...], padding: Any) -> bool:
    return len(kernel) == 2 and min(kernel) > 1 and not isinstance(padding, str)


FORMS: dict[str, Form] = {
    row.name: row
    for row in (
        Form("svd", lambda kernel, _: set(kernel) <= {1}, "outputs", Late("factoring.principal:split_by_outputs")),
        Form(
            "channel",
            lambda kernel, _: max(kernel, default=1) > 1,
            "outputs",
            Late("factoring.principal:split_by_outputs"),
        ),
        Form("spatial", _is_map, "columns", Late("factoring.spatial:split_by_columns")),
    )
}
