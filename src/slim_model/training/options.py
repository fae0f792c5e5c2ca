"""How the small model is fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim_model.errors import InputError
from slim_model.options import check_choices, option

OPTIMIZERS = ("auto", "sgd", "adamw")
PRECISIONS = ("auto", "fp32", "bf16")
VARIATIONS = ("crop", "flip", "cutmix")
"""How pictures may be varied; several are joined by +."""
ALPHA, TEMPERATURE = 0.5, 2.0
AUGMENT = ("auto", "none", *VARIATIONS)


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """``finetune``: epochs of training at the highest learning rate ``lr``, on pictures varied by ``augment`` (or a
    callable on one picture). The loss is ``alpha`` times the distillation loss at ``temperature`` (Hinton et al. 2015)
    plus the rest of the loss on labels; ``distill=False``: labels alone. ``hints`` weighs the feature-matching loss
    (FitNets, Romero et al. 2015). ``dropout``: the share of the model's own dropout rates that stays."""

    finetune: int = option(
        0,
        "Train the small model on --data, with the dense one as teacher.",
        metavar="EPOCHS",
        least=0,
        basic=True,
    )
    optimizer: str = option("auto", "auto: sgd where there is BatchNorm, else adamw.", choices=OPTIMIZERS)
    lr: float | None = option(
        None, "Highest learning rate. Default: 0.01 for sgd, 0.001 for adamw.", kind=float, metavar="X"
    )
    augment: str | Callable[..., Any] = option(
        "auto",
        "How pictures are varied, several joined by +; auto: crop+flip where they are in colour. cutmix takes --alpha "
        "1.",
        metavar="|".join(AUGMENT),
    )
    distill: bool = option(True, "Learn from the dense model too; without labels from it alone.")
    alpha: float = option(ALPHA, "Weight of the distillation loss, 0 (labels only) to 1 (teacher only).", metavar="A")
    temperature: float = option(TEMPERATURE, "Distillation temperature; higher gives softer targets.", metavar="T")
    hints: float = option(0.0, "Weight of the feature-matching loss (FitNets), such as 10.", metavar="W", least=0)
    dropout: float = option(1.0, "Share of the model's own dropout rates that stays: 0 to 1.", metavar="S")
    precision: str = option("auto", "auto: bf16 where this machine computes in it.", choices=PRECISIONS)

    def __post_init__(self) -> None:
        if self.finetune < 0:
            raise InputError(f"finetune {self.finetune} is not a number of epochs.")
        check_choices(self)
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InputError(f"lr {self.lr:g} is no rate; it is a number above 0, such as 0.01.")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha {self.alpha:g} is not between 0 (labels alone) and 1 (the dense model alone).")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature {self.temperature:g} is not above 0.")
        if not 0 <= self.dropout <= 1:
            raise InputError(f"dropout {self.dropout:g} is not between 0 (off) and 1 (the model's own rates).")
        if not 0 <= self.hints < math.inf:
            raise InputError(f"hints {self.hints:g} is no weight; it is a number from 0, such as 10.")
        if self.hints and not self.distill:
            raise InputError("hints are what the dense model says inside: leave out --no-distill, or --hints.")
        if not self.distill and (self.alpha not in (0, ALPHA) or self.temperature != TEMPERATURE):
            raise InputError(
                "alpha and temperature say how the small model learns from the dense one: leave out --no-distill, or "
                "these."
            )
        self._check_augment()

    def _check_augment(self) -> None:
        if callable(self.augment):
            return
        if self.augment not in AUGMENT and not set(self.augment.split("+")) <= set(VARIATIONS):
            raise InputError(
                f"augment '{self.augment}' is unknown; it is one of {', '.join(AUGMENT)}, the last three also joined "
                "by +, as in crop+flip, or a callable."
            )
