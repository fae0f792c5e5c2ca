"""Which groups of channels are the ranks of factored layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

from torch import Tensor

from slim_model.coupling.coupling import Coupling

Kind = Literal["all", "ranks", "widths"]
"""Which groups may lose channels."""


class InnerAxis(NamedTuple):
    """The number of a layer in ``Graph.factored``, and that of the factor which makes the axis."""

    layer: int
    factor: int


def find_rank_groups(coupling: Coupling) -> dict[int, InnerAxis]:
    """The number of a group -> the inner axis of a factored layer that its channels are."""
    made_by = {
        factor.weight: InnerAxis(number, place)
        for number, layer in enumerate(coupling.graph.factored)
        for place, factor in enumerate(layer.factors[:-1])
    }
    return {
        number: made_by[part.parameter]
        for number, group in enumerate(coupling.groups)
        for part in group.slices
        if part.role == "makes" and part.axis == 0 and part.parameter in made_by
    }


def kinds_of(coupling: Coupling) -> tuple[Kind, ...]:
    """The kinds of groups that can be told apart in ``coupling``."""
    ranks = find_rank_groups(coupling)
    return ("all", "ranks", "widths") if 0 < len(ranks) < len(coupling.groups) else ("all",)


def only(coupling: Coupling, scores: list[Tensor], kind: Kind) -> tuple[Coupling, list[Tensor]]:
    """``coupling`` in which nothing but groups of this kind may lose channels, and their scores."""
    if kind == "all":
        return coupling, scores
    ranks = find_rank_groups(coupling)
    chosen = [number for number in range(len(coupling.groups)) if (number in ranks) == (kind == "ranks")]
    return replace(coupling, groups=tuple(coupling.groups[n] for n in chosen)), [scores[n] for n in chosen]
