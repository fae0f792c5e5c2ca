"""How much each channel of a group matters. One function a criterion, one row in ``CRITERIA``.

A criterion gets ``Slices`` and returns one score per channel, higher = keep. It never sees operators or layer types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from slim_model.errors import InputError
from slim_model.named_options import known_options, read_option
from slim_model.ranking.criteria import activations, gradients, reconstruction, search, weights
from slim_model.ranking.criteria.slices import Slices, slices_of

__all__ = ["CRITERIA", "Criterion", "Ranking", "Slices", "ranking_of", "slices_of"]

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
