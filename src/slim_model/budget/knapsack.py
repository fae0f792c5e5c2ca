"""One option of each group, that together save enough and lose least: exact dynamic programming on bins."""

from __future__ import annotations

import numpy as np

_BINS = 400


def solve_knapsack(saved: list[np.ndarray], lost: list[np.ndarray], needed: float) -> list[int]:
    """One option of each that together save ``needed`` and lose least: ``best[b]`` is the least that saves b bins."""
    if needed <= 0:
        return [int(np.argmin(loss)) for loss in lost]
    size = needed / _BINS
    best = np.full(_BINS + 1, np.inf)
    best[0] = 0.0
    choices = []
    bins = np.arange(_BINS + 1)
    # Dynamic programming: one part after another, each with all of its options, over bins of what is saved so far.
    for save, loss in zip(saved, lost, strict=True):
        steps = np.clip(save / size, 0, _BINS).astype(int)
        reached, chosen = np.full(_BINS + 1, np.inf), np.zeros(_BINS + 1, int)
        for option, (step, cost) in enumerate(zip(steps, loss, strict=True)):
            candidate = best[np.maximum(bins - step, 0)] + cost
            better = candidate < reached
            reached[better], chosen[better] = candidate[better], option
        choices.append((chosen, steps))
        best = reached
    at = int(np.flatnonzero(np.isfinite(best))[-1])
    picked = []
    # Back from the fullest bin to the options that led there.
    for chosen, steps in reversed(choices):
        picked.append(int(chosen[at]))
        at = max(at - int(steps[chosen[at]]), 0)
    return picked[::-1]
