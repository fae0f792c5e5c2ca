"""What tests of fine-tuning share: pictures that can be learned, a recipe and one training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slim_model.data.datasets import Divided
from slim_model.data.training_samples import open_samples
from slim_model.pipeline.compile import lesson_of
from slim_model.pipeline.compiled import Compiled
from slim_model.recipe import Recipe
from slim_model.training.finetune import Tuned, finetune
from small_nets import images

EXAMPLE = (images(2),)
_BESIDE = ("resume", "progress", "cut_points")
"""What is given to ``finetune`` beside the recipe."""


def labelled(count: int = 200) -> Divided:
    """Pictures that are darker or lighter as a whole, by class."""
    labels = torch.arange(count) % 5
    return Divided((0.3 * images(count) + (labels - 2.0).view(-1, 1, 1, 1), labels))


def recipe(**options: Any) -> Recipe:
    given = {"data": labelled(), "finetune": 2, "batch": 20, "lr": 0.02, "precision": "fp32"} | options
    return Recipe.of(0.5, multiple_of=1, **given)


def tuned(removed: Compiled, **options: Any) -> Tuned:
    made = recipe(**{name: x for name, x in options.items() if name not in _BESIDE})
    more = {name: options[name] for name in _BESIDE if name in options}
    return finetune(removed.small, removed.dense, open_samples(made.data.data, EXAMPLE), lesson_of(made), **more)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
