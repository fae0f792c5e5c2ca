"""What a form makes of one layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One of the layers in a row: ``weight (outputs, inputs, *kernel)``, ``bias`` or none, and what a convolution is
    given besides."""

    weight: Tensor
    bias: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Split:
    """Layers in a row that compute what one did. ``lost``: for each inner axis float64 ``(rank,)``, the share of the
    layer's spread that goes with each position of it; positions are sorted, and the last carry least. ``macs``: of one
    rank, for each place of the output."""

    parts: tuple[Part, ...]
    lost: tuple[Tensor, ...]
    macs: int

    def lost_at(self, macs: float) -> float:
        """The share of the spread that is lost with as many ranks as these multiply-adds have room for."""
        return float(self.lost[0][max(1, int(macs / self.macs)) :].sum())


def pointwise_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of a 1x1 convolution of the same kind: one step, no padding."""
    rank = len(options.get("stride", ()))
    plain = {"stride": [1] * rank, "padding": [0] * rank, "dilation": [1] * rank}
    if isinstance(options.get("padding"), str):
        plain["padding"] = "valid"  # type: ignore[assignment]
    return options | plain if options else {}
