"""The shape of a row, and what a row may ask when constants are rewritten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx

from slim_model.labels.values import Flow
from slim_model.ops.cut import Cut
from slim_model.ops.layer import Layer


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    ``flow(walk, **arguments)`` gives the labels of the output from those of the inputs; arguments bear the names of
    the operator's schema. ``macs(out, **arguments)`` counts multiply-accumulates from shapes. ``rewrite(cut, node)``
    gives the arguments that change in the small graph (key ``target`` replaces the operator, key ``stored`` holds new
    values of stored constants, by name).

    ``masks`` says how the masked dense reference runs it: ``nothing`` (channels do not mix, or only move),
    ``inputs`` (it sums over channels: removed ones are zeroed first), ``kept`` (a statistic: runs over kept channels).
    ``over(input, **arguments)``, of a statistic: the axes of its input that it runs over, and in how many blocks each.
    ``layer(out, **arguments)`` says from shapes how the operator can be timed alone.
    """

    flow: Flow
    macs: Callable[..., int] | None = None
    rewrite: Callable[[Cut, fx.Node], dict[str, Any]] | None = None
    masks: Literal["nothing", "inputs", "kept"] = "nothing"
    layer: Callable[..., Layer] | None = None
    over: Callable[..., tuple[list[int], int]] | None = None
