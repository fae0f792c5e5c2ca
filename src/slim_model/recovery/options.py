"""How removed channels are compensated for, without labels."""

from __future__ import annotations

from dataclasses import dataclass

from slim_model.options import check_choices, option

LEVELS: dict[str, tuple[str, ...]] = {
    "none": (),
    "bias": ("bias",),
    "affine": ("affine",),
    "full": ("affine", "full"),
    "blocks": ("affine", "full", "blocks"),
    "network": ("affine", "full", "blocks", "network"),
    "data-free": ("data-free",),
}
"""The steps of each level, in their order (``recovery.recover.STEPS``)."""


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """``recover``: a level; None: as the effort says. ``recalibrate``: then estimate BatchNorm's running
    statistics anew."""

    recover: str | None = option(
        None,
        "Compensate for removed channels in the remaining weights, without labels. Default: full where there is data, "
        "else none; see --effort.",
        choices=tuple(LEVELS),
    )
    recalibrate: bool = option(False, "Then estimate BatchNorm's running statistics anew.")

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def needs_data(self) -> str | None:
        """The option that cannot do without data, as messages name it."""
        if self.recalibrate:
            return "recalibrate"
        return f"recover {self.recover}" if self.recover not in (None, "none", "data-free") else None
