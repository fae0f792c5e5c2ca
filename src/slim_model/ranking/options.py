"""What ranking can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim_model.options import option
from slim_model.ranking.criteria import CRITERIA, Criterion, ranking_of

if TYPE_CHECKING:  # for types alone: options are read without PyTorch
    from slim_model.data.loss import Loss


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """``criterion``: a name, or a callable ``(Slices) -> (width,) scores, higher = keep``. ``loss``: ``(outputs,
    labels)`` -> one for each sample, or their mean; default cross entropy."""

    criterion: str | Criterion = option(
        "l1", f"How channels are ranked: {', '.join(CRITERIA)}.", metavar="NAME[:OPTION=VALUE,...]", basic=True
    )
    loss: Loss | None = None

    def __post_init__(self) -> None:
        ranking_of(self.criterion)
