"""One site -> which of its units stay, by the criterion that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.widths.sites import Axis, Site
from slim_model.ranking.criteria import Ranking
from slim_model.ranking.criteria.slices import LazyTensors, Slices
from slim_model.ranking.evidence.gather import GroupEvidence, View
from slim_model.ranking.score import break_ties, checked_scores

STATISTICS = ("moments", "covariance")
"""What is gathered of the inputs of the reading layers; criteria that need other statistics are refused."""


def check_ranking(ranking: Ranking) -> None:
    """Raise InputError where the criterion asks for what no folder's run gathers."""
    if ranking.needs not in ("weights", "data") or not set(ranking.statistics) <= set(STATISTICS):
        raise InputError(
            f"criterion '{ranking.__name__}' is not there for folders. Of weights alone: l1, l2, fpgm, random; with "
            "--data text:FILE: power (Wanda), variance:weighted=true (FLAP), reconstruction, mean-activation."
        )


def kept_units(
    checkpoint: Checkpoint, site: Site, count: int, ranking: Ranking, seed: int, statistics: Mapping[str, Any]
) -> Tensor:
    """The ``count`` units to keep, ascending. Inputs of the reading layer are scored one by one; a unit with several
    (a group of heads) has their mean, as FLAP's heads do (An et al. 2024)."""
    columns = site.units * site.columns
    weight = checkpoint.read(site.reads.tensor).movedim(site.reads.axis, 0).float()
    view = View(site.reads.tensor, torch.arange(columns), (weight,), dict(statistics))
    slices = Slices(
        columns,
        LazyTensors([row for axis in site.makes for row in _rows(checkpoint, site, axis)]),
        [weight],
        LazyTensors([]),
        torch.Generator().manual_seed(seed),
        site.reads.tensor.removesuffix(".weight"),
        evidence=GroupEvidence((view,) if statistics else ()),
    )
    by_unit = break_ties(checked_scores(ranking, slices), slices).view(site.units, site.columns).mean(1)
    return best(by_unit, count)


def best(scores: Tensor, count: int) -> Tensor:
    """The numbers of the ``count`` highest, ascending."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _rows(checkpoint: Checkpoint, site: Site, axis: Axis) -> list[Callable[[], Tensor]]:
    """For each part of a making layer, ``(column, rest)``: the row that each column of the reader comes from. The keys
    and values of a group stand behind all its queries."""
    rows, start = list[Callable[[], Tensor]](), 0
    unit = torch.arange(site.units)[:, None]
    for span in axis.spans:
        index = (start + unit * span + torch.arange(site.columns) % span).flatten()
        rows.append(partial(_read_rows, checkpoint, axis, index))
        start += site.units * span
    return rows


def _read_rows(checkpoint: Checkpoint, axis: Axis, index: Tensor) -> Tensor:
    return checkpoint.read(axis.tensor).movedim(axis.axis, 0)[index].float()
