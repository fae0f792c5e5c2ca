"""How much work a run puts in: what it does where the user named nothing. One row each in ``EFFORTS``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slim_model.options import check_choices, option


@dataclass(frozen=True, slots=True)
class Effort:
    """``criterion``, ``allocate`` (where a price is limited), the level of ``recover`` and how many ``samples`` a run
    takes. ``benchmarks/effort.py`` measures what each keeps of trained nets."""

    criterion: str
    allocate: str | None
    recover: str
    samples: int


EFFORTS: dict[str, Effort] = {
    "quick": Effort("reconstruction", None, "affine", 256),
    "balanced": Effort("reconstruction", "judged", "full", 1024),
    "best": Effort("reconstruction", "judged", "network", 4096),
}
WITHOUT_DATA = Effort("l1", None, "none", 1024)
"""What weights alone allow, at any effort."""


@dataclass(frozen=True, slots=True)
class EffortOptions:
    """``effort``: a row of ``EFFORTS``; None: ``balanced`` where there is data."""

    effort: str | None = option(
        None,
        "What is chosen where you name no criterion, allocation, recovery or number of samples. quick: affine recovery "
        "on 256 samples; balanced: full on 1,024; best: network on 4,096. Without data weights alone decide. Default: "
        "balanced.",
        choices=tuple(EFFORTS),
        basic=True,
    )

    def __post_init__(self) -> None:
        check_choices(self)


def decided(options: Mapping[str, Any]) -> dict[str, Any]:
    """Values for those of ``options``, by name, that were left open."""
    name = options["effort"] or "balanced"
    row = WITHOUT_DATA if options["data"] is None else EFFORTS[name]
    found: dict[str, Any] = {"effort": name, "criterion": row.criterion, "recover": row.recover, "samples": row.samples}
    # A ratio of channels is the same in every layer; a whole plan can be tried where one round meets a limit.
    limited = options["target"] is not None or options["of"] != "channels"
    if limited and row.allocate and options["scope"] == "local" and options["iterations"] == 1:
        found["allocate"] = row.allocate
    return {key: value for key, value in found.items() if options[key] is None}
