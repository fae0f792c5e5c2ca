"""Which groups of channels are the ranks of factored layers."""

from __future__ import annotations

from slim_model.coupling.coupling import Coupling


def find_rank_groups(coupling: Coupling) -> dict[int, int]:
    """The number of a group -> the number of the layer in ``Graph.factored`` whose inner axis its channels are."""
    made_by = {
        factor.weight: number for number, layer in enumerate(coupling.graph.factored) for factor in layer.factors[:-1]
    }
    return {
        number: made_by[part.parameter]
        for number, group in enumerate(coupling.groups)
        for part in group.slices
        if part.role == "makes" and part.axis == 0 and part.parameter in made_by
    }
