"""criteria: how much each channel of a group matters. One function a criterion, one row in ``CRITERIA``.

A criterion gets ``Slices`` and returns one score per channel, higher = keep. It never sees operators or layer types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from slim_model.couple import Coupling
from slim_model.criteria import activations, gradients, reconstruction, search, weights
from slim_model.criteria.slices import Slices, slices_of
from slim_model.data import Data
from slim_model.errors import InputError
from slim_model.evidence import Count, Evidence, GroupEvidence, gather
from slim_model.keywords import known_options, read_option
from slim_model.loss import Loss
from slim_model.trials import losses_of

__all__ = ["CRITERIA", "Criterion", "Ranking", "Slices", "check_needs", "ranking_of", "score", "slices_of"]

Criterion = Callable[[Slices], Tensor]
Needs = Literal["weights", "data", "labels", "loss"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A criterion and what it needs: ``weights`` alone, ``data``, data with ``labels``, or data and a ``loss`` (made
    from labels if there is none); the ``statistics`` it reads by name; ``tries``: it measures the loss itself."""

    function: Callable[..., Tensor]
    needs: Needs = "weights"
    statistics: tuple[str, ...] = ()
    tries: bool = False
    __name__: str = "callable"

    def __call__(self, slices: Slices) -> Tensor:
        return self.function(slices)


def _row(name: str, function: Callable[..., Tensor], needs: Needs = "weights", *statistics: str) -> Ranking:
    return Ranking(function, needs, statistics, needs == "loss" and not statistics, name)


CRITERIA: dict[str, Ranking] = {
    row.__name__: row
    for row in (
        _row("random", weights.random),
        _row("l1", weights.l1),
        _row("l2", weights.l2),
        _row("bn-scale", weights.bn_scale),
        _row("fpgm", weights.fpgm),
        _row("lamp", weights.lamp),
        _row("mean-activation", activations.mean_activation, "data", "moments"),
        _row("variance", activations.variance, "data", "moments"),
        _row("power", activations.power, "data", "moments"),
        _row("apoz", activations.apoz, "data", "zeros"),
        _row("entropy", activations.entropy, "data", "histogram"),
        _row("hrank", activations.hrank, "data", "ranks"),
        _row("lda", activations.lda, "labels", "classes"),
        _row("correlation", activations.correlation, "data", "correlations"),
        _row("taylor", gradients.taylor, "loss", "gates"),
        _row("fisher", gradients.fisher, "loss", "gates"),
        _row("hessian", gradients.hessian, "loss", "curvature"),
        _row("thinet", reconstruction.thinet, "data", "contributions"),
        _row("reconstruction", reconstruction.reconstruction, "data", "covariance"),
        _row("kernel", reconstruction.kernel),
        _row("random-mask", search.random_mask, "loss"),
        _row("oracle", search.oracle, "loss"),
    )
}


def ranking_of(criterion: str | Criterion) -> Ranking:
    """The row for ``NAME`` or ``NAME:option=value,...``; the options are the keywords of the criterion's function."""
    if isinstance(criterion, Ranking):
        return criterion
    if not isinstance(criterion, str):
        return Ranking(criterion, __name__=getattr(criterion, "__name__", "callable"))
    name, _, rest = criterion.partition(":")
    row = CRITERIA.get(name)
    if row is None:
        raise InputError(f"no criterion is called '{name}'. There are: {', '.join(CRITERIA)}.")
    if not rest:
        return row
    function = partial(row.function, **_options(name, row.function, rest))
    return Ranking(function, row.needs, row.statistics, row.tries, criterion)


def _options(name: str, function: Callable[..., Tensor], text: str) -> dict[str, Any]:
    known = known_options(function)
    chosen: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise InputError(f"criterion '{name}' has no option '{key}': {has}. Write {name}:option=value.")
        try:
            chosen[key] = read_option(value, known[key])
        except ValueError:
            raise InputError(f"criterion '{name}': {key}={value} is not like {key}={known[key]}.") from None
    if chosen.get("combine", "mean") not in ("mean", "max", "min", "sum"):
        raise InputError(f"criterion '{name}': combine={chosen['combine']} is not mean, max, min or sum.")
    return chosen


def score(
    coupling: Coupling,
    criterion: str | Criterion,
    *,
    seed: int = 0,
    data: Data | None = None,
    loss: Loss | None = None,
    count: Count = lambda done, total: None,
) -> list[Tensor]:
    """One float64 tensor ``(width,)`` per group, higher = keep. No two channels of a group are equal: ties are broken
    by the norm of the weights that read a channel, then by its number (the first one is kept)."""
    ranking = ranking_of(criterion)
    check_needs(ranking, data, loss)
    none = Evidence(tuple(GroupEvidence() for _ in coupling.groups), 0)
    evidence = none
    if ranking.statistics and data is not None:
        evidence = gather(coupling, data, ranking.statistics, loss=loss, seed=seed, count=count)
    scores = []
    for number, group in enumerate(coupling.groups):
        losses = losses_of(coupling, group, data, loss) if ranking.tries and data is not None else None
        slices = slices_of(coupling, group, seed + number, evidence.groups[number], losses)
        result = ranking(slices)
        if result.shape != (group.width,):
            raise InputError(
                f"the criterion returned {tuple(result.shape)} for '{group.name}'; it must return one score "
                f"for each of its {group.width} channels."
            )
        if not torch.isfinite(result).all():
            raise InputError(f"the criterion gave NaN or infinity for '{group.name}'. Check the model's weights.")
        scores.append(without_ties(result.detach().double().cpu(), slices))
        if ranking.tries:
            count(number + 1, len(coupling.groups))
    return scores


def check_needs(ranking: Ranking, data: Data | None, loss: Loss | None) -> None:
    name = ranking.__name__
    if ranking.needs == "weights":
        return
    if data is None:
        with_labels = "" if ranking.needs == "data" else " with labels"
        raise InputError(
            f"criterion '{name}' needs data{with_labels}, and none was given: add --data SPEC, such as mnist:DIR or "
            "imagefolder:DIR, or data=batches in Python."
        )
    if data.labelled or ranking.needs == "data" or (ranking.needs == "loss" and loss is not None):
        return
    other = " or a loss" if ranking.needs == "loss" else ""
    also = ", or loss=callable in Python" if ranking.needs == "loss" else ""
    raise InputError(
        f"criterion '{name}' needs labels{other}, and {data.name} has no labels: "
        f"give batches of (inputs, labels){also}."
    )


def without_ties(scores: Tensor, slices: Slices) -> Tensor:
    """The same scores, equal ones moved apart by the smallest steps: by reading weights, then the first up."""
    values = scores.numpy()
    _, number, many = np.unique(values, return_inverse=True, return_counts=True)
    tied = np.flatnonzero(many[number] > 1)
    if not len(tied):
        return scores
    read = np.zeros(len(values))
    for weight in slices.reads:
        read[tied] += weight[torch.from_numpy(tied)].double().square().sum(1).numpy()
    order = np.lexsort((-np.arange(len(values)), read, values))
    apart = values[order].copy()
    for i in range(1, len(apart)):
        if apart[i] <= apart[i - 1]:
            apart[i] = np.nextafter(apart[i - 1], np.inf)
    result = np.empty_like(apart)
    result[order] = apart
    return torch.from_numpy(result)
