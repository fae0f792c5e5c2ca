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
    """``criterion``: a name, or a callable ``(Slices) -> (width,) scores, higher = keep``; None: as the effort says.
    ``loss``: ``(outputs,
    labels)`` -> one for each sample, or their mean; default cross entropy."""

    criterion: str | Criterion | None = option(
        None,
        f"How channels are ranked: {', '.join(CRITERIA)}. Default: reconstruction where there is data, else l1.",
        metavar="NAME[:OPTION=VALUE,...]",
        basic=True,
    )
    loss: Loss | None = None

    @property
    def ranked_by(self) -> str | Criterion:
        """The criterion; that of weights alone where nothing names one."""
        return "l1" if self.criterion is None else self.criterion

    def __post_init__(self) -> None:
        ranking_of(self.ranked_by)
