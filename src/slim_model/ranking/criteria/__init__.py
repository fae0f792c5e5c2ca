"""How much each channel of a group matters. One function a criterion, one row in ``CRITERIA``.

A criterion gets ``Slices`` and returns one score per channel, higher = keep. It never sees operators or layer types.
The table does not import PyTorch; a row's function is imported when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from slim_model.errors import InputError
from slim_model.late import Late
from slim_model.named_options import read_options

if TYPE_CHECKING:  # for types alone: the table is read without PyTorch
    from torch import Tensor

    from slim_model.data.batches import Data
    from slim_model.data.loss import Loss
    from slim_model.ranking.criteria.slices import Slices

__all__ = ["CRITERIA", "Criterion", "Ranking", "check_needs", "ranking_of"]

Criterion = Callable[["Slices"], "Tensor"]
Needs = Literal["weights", "data", "labels", "loss"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A criterion and what it needs: ``weights`` alone, ``data``, data with ``labels``, or data and a ``loss`` (made
    from labels if there is none); the ``statistics`` it reads by name; ``tries``: it measures the loss itself."""

    function: Callable[..., Any]
    needs: Needs = "weights"
    statistics: tuple[str, ...] = ()
    tries: bool = False
    __name__: str = "callable"

    def __call__(self, slices: Slices) -> Tensor:
        return self.function(slices)  # type: ignore[no-any-return]


def _row(name: str, place: str, needs: Needs = "weights", *statistics: str) -> Ranking:
    function = Late(f"ranking.criteria.{place}")
    return Ranking(function, needs, statistics, needs == "loss" and not statistics, name)


CRITERIA: dict[str, Ranking] = {
    row.__name__: row
    for row in (
        _row("random", "weights:random"),
        _row("l1", "weights:l1"),
        _row("l2", "weights:l2"),
        _row("bn-scale", "weights:bn_scale"),
        _row("fpgm", "weights:fpgm"),
        _row("lamp", "weights:lamp"),
        _row("mean-activation", "activations:mean_activation", "data", "moments"),
        _row("variance", "activations:variance", "data", "moments"),
        _row("power", "activations:power", "data", "moments"),
        _row("apoz", "activations:apoz", "data", "zeros"),
        _row("entropy", "activations:entropy", "data", "histogram"),
        _row("hrank", "activations:hrank", "data", "ranks"),
        _row("lda", "activations:lda", "labels", "classes"),
        _row("correlation", "activations:correlation", "data", "correlations"),
        _row("taylor", "gradients:taylor", "loss", "gates"),
        _row("fisher", "gradients:fisher", "loss", "gates"),
        _row("hessian", "gradients:hessian", "loss", "curvature"),
        _row("thinet", "reconstruction:thinet", "data", "contributions"),
        _row("reconstruction", "reconstruction:reconstruction", "data", "covariance"),
        _row("kernel", "reconstruction:kernel"),
        _row("random-mask", "search:random_mask", "loss"),
        _row("oracle", "search:oracle", "loss"),
    )
}
_WORDS = {"combine": ("mean", "max", "min", "sum")}


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
    function = partial(row.function, **read_options("criterion", name, row.function, rest, _WORDS))
    return Ranking(function, row.needs, row.statistics, row.tries, criterion)


def check_needs(ranking: Ranking, data: Data | None, loss: Loss | None) -> None:
    """Raise InputError where a criterion needs data, labels or a loss that are not given."""
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
