"""Which points of a sweep are worth a run: chosen one after the other, from what the earlier ones gave."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slim_model.errors import InputError
from slim_model.reporting.headline import agreement_of, latency_of, tested_accuracy

_ASKED = 20
"""Times the number of points that the sampler is asked at most: it may name a point again."""


def searched(
    axes: Mapping[str, Sequence[Any]],
    names: Sequence[str],
    reports: Mapping[str, Mapping[str, Any]],
    *,
    count: int,
    seed: int,
) -> Iterator[str]:
    """The names of ``count`` points. ``names`` has all of them: the combinations of the values of ``axes``, in the
    order of itertools.product.

    Each is chosen after ``reports`` has what the last one gave (a point that failed has none): low latency, or few
    multiply-adds where none was measured, and high accuracy, or agreement, both at once. A third are drawn by chance,
    the rest by the tree-structured Parzen estimator of Optuna (Bergstra et al. 2011; Ozaki et al. 2022). Raises
    InputError where Optuna is not installed.
    """
    study = _study(count, seed)
    places = dict(zip(itertools.product(*(range(len(values)) for values in axes.values())), names, strict=True))
    tried: dict[str, None] = {}
    wanted = min(count, len(names))
    for _ in range(_ASKED * wanted):
        if len(tried) == wanted:
            return
        trial = study.ask()
        name = places[tuple(_place(trial, axis, values) for axis, values in axes.items())]
        if name not in tried:
            tried[name] = None
            yield name
        # A point that is named again is told again: without that the sampler learns less of where the good ones are.
        report = reports.get(name)
        study.tell(trial, *([_worth(report)] if report else [None, _failed()]))
    left = [name for name in names if name not in tried]
    yield from random.Random(seed).sample(left, wanted - len(tried))


def _study(count: int, seed: int) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("--search needs Optuna: pip install optuna, or leave it out to run every point.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, count // 3))
    return optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _place(trial: Any, axis: str, values: Sequence[Any]) -> int:
    """Which of ``values`` the sampler takes; numbers in order have neighbours."""
    numbers = all(isinstance(value, int | float) for value in values)
    if numbers and list(values) == sorted(values):
        return int(trial.suggest_int(axis, 0, len(values) - 1))
    return int(trial.suggest_categorical(axis, list(range(len(values)))))


def _worth(report: Mapping[str, Any]) -> list[float]:
    """What a point costs, and how good it is; 0 where nothing says how good."""
    accuracy = tested_accuracy(report)
    quality = agreement_of(report) if accuracy is None else accuracy
    return [latency_of(report) or float(report["slim"]["macs"]), quality or 0.0]
