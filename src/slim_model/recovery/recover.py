"""The small graph -> the same graph with values that make up for what was removed; no labels.

Structure and shapes stay as they were proven: only stored tensors change. Every step is judged by the error of the
outputs on samples that none of the steps has seen, and is taken back where it does not lower it, or where clearly fewer
of them then get the dense model's class.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from slim_model.data.accuracy import Exam, Step
from slim_model.data.augmentation import Transform
from slim_model.data.batches import Data
from slim_model.data.holdout import Parts, split_off_held_out
from slim_model.graph.graph import Graph
from slim_model.graph.promises import same_sizes
from slim_model.progress import Progress, say_nothing
from slim_model.recovery import affine, data_free
from slim_model.recovery import batchnorm_statistics as norms
from slim_model.recovery import least_squares as full
from slim_model.recovery.distillation import blocks, network
from slim_model.recovery.gate_layers import find_layers
from slim_model.recovery.linear_layers import Kept, LinearLayer
from slim_model.recovery.options import LEVELS
from slim_model.recovery.referee import Referee


@dataclass(frozen=True, slots=True)
class _Case:
    dense: Graph
    layers: list[LinearLayer]
    fit: Parts
    held_out: Parts
    progress: Progress
    judge: Callable[[Graph], float]
    """The error of the outputs on what is held out."""
    augment: str | Transform


Change = Callable[[_Case, Graph], tuple[Graph, dict[str, Any]]]


def _data_free(case: _Case, small: Graph) -> tuple[Graph, dict[str, Any]]:
    graph, took = data_free.merge(case.dense, small, case.layers)
    return graph, {"layers": took}


def _bias(case: _Case, small: Graph) -> tuple[Graph, dict[str, Any]]:
    graph, took = affine.fold(case.dense, small, case.layers, case.fit, case.held_out, ridges=())
    return graph, {"layers": took}


def _affine(case: _Case, small: Graph) -> tuple[Graph, dict[str, Any]]:
    graph, took = affine.fold_steady(case.dense, small, case.layers, case.fit, case.held_out, case.judge)
    return graph, {"layers": took}


def _full(case: _Case, small: Graph) -> tuple[Graph, dict[str, Any]]:
    graph, took = full.fit_layers(case.dense, small, case.layers, case.fit, case.held_out, progress=case.progress)
    return graph, {"layers": took}


def _blocks(case: _Case, small: Graph) -> tuple[Graph, dict[str, Any]]:
    graph, took = blocks.train_blocks(case.dense, small, case.layers, case.fit, case.held_out, progress=case.progress)
    return graph, {"blocks": took}


def _network(case: _Case, small: Graph) -> tuple[Graph, dict[str, Any]]:
    graph, took = network.train_network(
        case.dense, small, case.layers, case.fit, case.held_out, augment=case.augment, progress=case.progress
    )
    return graph, {"blocks": took}


def _recalibrated(case: _Case, small: Graph) -> tuple[Graph, dict[str, Any]]:
    graph, count = norms.recalibrate(small, case.fit)
    return graph, {"norms": count}


STEPS: dict[str, Change] = {
    "data-free": _data_free,
    "bias": _bias,
    "affine": _affine,
    "full": _full,
    "blocks": _blocks,
    "network": _network,
    "recalibrate": _recalibrated,
}


def recover(
    dense: Graph,
    small: Graph,
    kept: Kept,
    data: Data | None,
    level: str,
    exam: Exam,
    *,
    recalibrate: bool = False,
    augment: str | Transform = "auto",
    progress: Progress = say_nothing,
) -> tuple[Graph, tuple[Step, ...]]:
    """Give the small graph values that compensate for what was removed. ``kept``: the dense positions left of each
    stored tensor; ``augment``: how pictures are varied where the whole network learns. Returns the recovered graph, and
    a Step for each change that was tried.

    Without data, which ``data-free`` alone can do without, nothing judges it.
    """
    names = (*LEVELS[level], *(("recalibrate",) if recalibrate else ()))
    if not names:
        return small, ()
    fit, held_out = split_off_held_out(data, dense) if data else (lambda: iter(()), lambda: iter(()))
    referee = Referee(dense, held_out)
    # Layers are found once, in the small graph as it was proven: steps change values, never structure.
    case = _Case(dense, find_layers(dense, small, kept), fit, held_out, progress, referee.error, augment)
    steps, now = [], referee.judge(small)
    for name in names:
        progress(f"recovering: {name}")
        started = time.perf_counter()
        with torch.no_grad():
            changed, did = STEPS[name](case, small)
        # A step is kept only where it brings held-out outputs nearer, so that no level can do harm.
        same_sizes(changed, small, f"recover {name}")
        after = referee.judge(changed)
        better = after.better_than(now)
        did |= {"error_before": _said(now.error), "error_after": _said(after.error)}
        did |= {"agreement_before": now.agreement, "agreement_after": after.agreement, "taken_back": not better}
        if better:
            small, now = changed, after
        steps.append(exam.step(name, small, started, **did))
    return small, tuple(steps)


def _said(error: float) -> float | None:
    """As JSON has it: nothing was held out, or the outputs are no numbers."""
    return error if math.isfinite(error) else None
