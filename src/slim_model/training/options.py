"""What training can be asked for, checked before anything is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from slim_model.data.augmentation import check_augment
from slim_model.errors import InputError
from slim_model.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from slim_model.recipe import Recipe


PRECISIONS = ("auto", "fp32", "bf16")


def check_training(recipe: Recipe) -> None:
    """Options that say how to train, each by itself."""
    if recipe.finetune < 0:
        raise InputError(f"finetune {recipe.finetune} is not a number of epochs.")
    if recipe.finetune and recipe.data is None:
        raise InputError("fine-tuning needs data: give --data, or data= in Python.")
    for name, choices in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
        if getattr(recipe, name) not in choices:
            raise InputError(f"{name} '{getattr(recipe, name)}' is unknown; it is one of {', '.join(choices)}.")
    if recipe.lr is not None and not 0 < recipe.lr < math.inf:
        raise InputError(f"lr {recipe.lr:g} is no rate; it is a number above 0, such as 0.01.")
    if not 0 <= recipe.alpha <= 1:
        raise InputError(f"alpha {recipe.alpha:g} is not between 0 (labels alone) and 1 (the dense model alone).")
    if not 0 < recipe.temperature < math.inf:
        raise InputError(f"temperature {recipe.temperature:g} is not above 0.")
    if not 0 <= recipe.dropout <= 1:
        raise InputError(f"dropout {recipe.dropout:g} is not between 0 (off) and 1 (the model's own rates).")
    if not 0 <= recipe.hints < math.inf:
        raise InputError(f"hints {recipe.hints:g} is no weight; it is a number from 0, such as 10.")
    if recipe.hints and not recipe.distill:
        raise InputError("hints are what the dense model says inside: leave out --no-distill, or --hints.")
    check_augment(recipe.augment)
