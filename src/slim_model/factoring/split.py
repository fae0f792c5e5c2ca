"""What a form makes of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from slim_model.cost.break_even import share_within


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
    layer's spread that goes with each position of it; positions are sorted, and the last carry least."""

    parts: tuple[Part, ...]
    lost: tuple[Tensor, ...]

    @property
    def macs(self) -> list[int]:
        """Of each part with all ranks, for each place of the output. A part ahead of strides runs at more places."""
        places, counted = 1, list[int]()
        for part in reversed(self.parts):
            counted.insert(0, part.weight.numel() * places)
            places *= math.prod(part.options.get("stride", ()))
        return counted

    def lost_at(self, macs: float) -> float:
        """The share of the spread that is lost with so many ranks, a like part of each, as these multiply-adds for each
        place of the output have room for."""
        share = share_within(self.macs, macs)
        return sum(float(lost[max(1, int(share * len(lost))) :].sum()) for lost in self.lost)


def pointwise_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of a 1x1 convolution of the same kind: one step, no padding."""
    rank = len(options.get("stride", ()))
    plain = {"stride": [1] * rank, "padding": [0] * rank, "dilation": [1] * rank}
    if isinstance(options.get("padding"), str):
        plain["padding"] = "valid"  # type: ignore[assignment]
    return options | plain if options else {}
