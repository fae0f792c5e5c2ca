"""Which groups of channels are the ranks of factored layers."""

from __future__ import annotations

from typing import NamedTuple

from slim_model.coupling.coupling import Coupling


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
