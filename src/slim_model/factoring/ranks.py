"""Ranks as channels: their scores, and what a plan makes of the layers whose ranks do not pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from slim_model.cost.counted import CostModel, Pays, by_macs
from slim_model.coupling.coupling import Coupling, Slice
from slim_model.errors import ensure
from slim_model.factoring.factor import Factoring
from slim_model.graph.graph import Graph


def scores_with_ranks(coupling: Coupling, factoring: Factoring, start: Coupling, scores: list[Tensor]) -> list[Tensor]:
    """For each group of ``coupling``, of the factored graph, float64 ``(width,)``, higher = keep.

    Of widths it is what ``scores`` say of ``start``, the coupling of the graph before. Of a rank it is the share of its
    layer's spread that is lost when it and all that carry less are gone: as ``reconstruction`` scores channels.
    """
    known = {
        (part.parameter, part.axis): (part, score)
        for group, score in zip(start.groups, scores, strict=True)
        for part in group.slices
    }
    places, lost = factoring.places, factoring.lost
    result = []
    for group in coupling.groups:
        own = torch.full((group.width,), torch.nan, dtype=torch.float64)
        for part in group.slices:
            place = (part.parameter, part.axis)
            if part.axis == 0 and part.role == "makes" and part.parameter in lost:
                by_rank = _errors_so_far(lost[part.parameter])
                _fill(own, part, by_rank.repeat(len(part.channel) // len(by_rank)))  # terms of each input
            elif (before := known.get(places.get(place, place))) is not None:
                _fill(own, part, before[1].double()[torch.from_numpy(before[0].channel)])
        ensure(not bool(own.isnan().any()), "factor", f"'{group.name}' has channels that no score is known of")
        result.append(own)
    return result


def _fill(scores: Tensor, part: Slice, by_position: Tensor) -> None:
    here = torch.from_numpy(part.channel >= 0)
    scores[torch.from_numpy(part.channel)[here]] = by_position[here]


def _errors_so_far(lost: Tensor) -> Tensor:
    """``[0.9, 0.1] -> [1, 0.1]``; what carries nothing still falls with its number, so that no two are equal."""
    return lost.flip(0).cumsum(0).flip(0) + torch.arange(len(lost), 0, -1) * 1e-12


def settle(
    coupling: Coupling,
    keep: np.ndarray,
    factoring: Factoring,
    couple_again: Callable[[Graph], Coupling],
    silent: Sequence[int] = (),
    pays: Pays = by_macs,
) -> tuple[Coupling, np.ndarray, list[int]]:
    """The plan ``keep`` (bool by component) without the layers whose ranks do not pay: these are multiplied back, which
    is to leave them as they were, with all their ranks. ``silent``: numbers of groups that nothing reads; ``pays``: the
    rule.

    Returns the coupling of the graph in which the others alone are factored, and the same plan and groups there.
    ``couple_again``: how that graph is coupled.
    """
    paying = {product.layer.weight for product in CostModel(coupling).products(keep) if pays(product)}
    left = factoring.only(paying)
    settled = couple_again(left.graph)
    read = coupling.keep_all()
    for number in silent:
        read[coupling.groups[number].channels] = False
    kept, read = (_carried(coupling, each, settled, factoring) for each in (keep, read))
    unread = [number for number, group in enumerate(settled.groups) if not read[group.channels].any()]
    return settled, kept, unread


def _carried(coupling: Coupling, keep: np.ndarray, settled: Coupling, factoring: Factoring) -> np.ndarray:
    """``keep``, bool by component of ``coupling``, by component of ``settled``."""
    stays = coupling.labels_left(keep)
    by_place = {(b.owner, b.axis): stays[b.start : b.start + b.size] for b in coupling.labelled.births}
    back = {start: place for place, start in factoring.places.items()}
    carried = settled.keep_all()
    for birth in settled.labelled.births:
        place = (birth.owner, birth.axis)
        here = by_place.get(place, by_place.get(back.get(place, place)))
        if here is not None:
            ensure(len(here) == birth.size, "factor", f"'{birth.owner}' has another size where fewer are factored")
            carried[settled.channels_gone(birth, here)] = False
    return carried
