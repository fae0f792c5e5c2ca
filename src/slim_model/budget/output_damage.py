"""Scores of each group -> what the model's outputs lose with each channel, in one unit for all groups.

A criterion ranks the channels of one group. Some give the error of the next layer when a channel and all of less worth
are gone (``reconstruction``, ``kernel``, ``thinet``): how much that hurts the outputs differs from layer to layer by
orders of magnitude. So each group in turn loses a part of its channels, the others whole; these are made up for as
``--recover affine`` does, and the error of the outputs that is left then says what the group's errors weigh.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import CutFailed, positions_left
from slim_model.cutting.shrink_graph import shrink
from slim_model.data.batches import Data
from slim_model.data.holdout import Parts, split_off_held_out
from slim_model.progress import Progress, count_in_text, say_nothing
from slim_model.recovery import affine
from slim_model.recovery.gate_layers import find_layers
from slim_model.recovery.referee import Referee


def measure_output_damage(
    coupling: Coupling,
    scores: list[Tensor],
    data: Data,
    *,
    share: float = 0.5,
    progress: Progress = say_nothing,
) -> list[Tensor]:
    """For each group float64 ``(width,)``, in the order of ``scores``, which are errors so far: the share of the
    outputs' spread that is lost with a channel when all of its group that score less are gone. ``share`` of a group
    goes to find out. Sums of these compare between groups: ``allocate`` takes them with ``normalise=none``.
    """
    graph = coupling.graph
    fit, held_out = split_off_held_out(data, graph)
    referee, memory = Referee(graph, held_out), affine.bytes_needed(graph, fit, held_out)
    damages = []
    count = count_in_text(progress, "weighing layers")
    for number, (group, score) in enumerate(zip(coupling.groups, scores, strict=True)):
        count(number, len(scores))
        order = torch.sort(score.double(), stable=True).indices
        # Errors so far: with a channel goes all of less worth, so that they rise.
        lost = score.double()[order].clamp(min=0).cummax(0).values
        gone = max(1, math.ceil(share * group.width)) if group.width > 1 else 0
        error = lost[gone - 1] if gone else torch.zeros(())
        weight = 1.0
        if error > 0:
            # One removal of a share tells the unit in which this group's errors are.
            keep = coupling.keep_all()
            keep[group.channels[order[:gone].numpy()]] = False
            weight = _error(coupling, keep, fit, held_out, referee, memory) / float(error)
        each = torch.diff(lost, prepend=lost.new_zeros(1)) * weight
        damages.append(torch.zeros_like(lost).scatter_(0, order, each))
    return damages


def _error(
    coupling: Coupling, keep: np.ndarray, fit: Parts, held_out: Parts, referee: Referee, memory: affine.Memory
) -> float:
    """Of the outputs, with affine recovery; where nothing can be cut, as if they were lost."""
    try:
        small, _ = shrink(coupling, keep)
    except CutFailed:
        return 1.0
    layers = find_layers(coupling.graph, small, positions_left(coupling, keep))
    recovered, _ = affine.fold(coupling.graph, small, layers, fit, held_out, memory=memory)
    return min(referee.error(small), referee.error(recovered))
