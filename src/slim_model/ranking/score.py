"""Channels -> one score each, by the criterion that was asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slim_model.coupling.coupling import Coupling
from slim_model.data.batches import Data
from slim_model.data.loss import Loss
from slim_model.errors import InputError
from slim_model.progress import Count, count_nothing
from slim_model.ranking.criteria import Criterion, Ranking, check_needs, ranking_of
from slim_model.ranking.criteria.slices import Slices, slices_of
from slim_model.ranking.evidence.ablation import losses_of
from slim_model.ranking.evidence.gather import Evidence, GroupEvidence, gather


def score(
    coupling: Coupling,
    criterion: str | Criterion,
    *,
    seed: int = 0,
    data: Data | None = None,
    loss: Loss | None = None,
    count: Count = count_nothing,
) -> list[Tensor]:
    """One float64 tensor ``(width,)`` per group, higher = keep. No two channels of a group are equal: ties are broken
    by the norm of the weights that read a channel, then by its number (the first one is kept)."""
    ranking = ranking_of(criterion)
    check_needs(ranking, data, loss)
    # A criterion of weights sees empty evidence, so that all have one signature.
    none = Evidence(tuple(GroupEvidence() for _ in coupling.groups), 0)
    evidence = none
    if ranking.statistics and data is not None:
        evidence = gather(coupling, data, ranking.statistics, loss=loss, seed=seed, count=count)
    scores = []
    for number, group in enumerate(coupling.groups):
        losses = losses_of(coupling, group, data, loss) if ranking.tries and data is not None else None
        slices = slices_of(coupling, group, seed + number, evidence.groups[number], losses)
        scores.append(break_ties(checked_scores(ranking, slices), slices))
        if ranking.tries:
            count(number + 1, len(coupling.groups))
    return scores


def checked_scores(ranking: Ranking, slices: Slices) -> Tensor:
    """What the criterion gives of one group, float64 ``(width,)``. It may be the user's own function, so that this is
    checked before it decides anything: InputError where it is no finite score a channel."""
    result = ranking(slices)
    if result.shape != (slices.width,):
        raise InputError(
            f"the criterion returned {tuple(result.shape)} for '{slices.name}'; it must return one score "
            f"for each of its {slices.width} channels."
        )
    if not torch.isfinite(result).all():
        raise InputError(f"the criterion gave NaN or infinity for '{slices.name}'. Check the model's weights.")
    return result.detach().double().cpu()


def break_ties(scores: Tensor, slices: Slices) -> Tensor:
    """The same scores, with equal ones moved apart by the smallest steps: by the norm of the reading weights, then by
    number."""
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
