"""The dead law over every micro-net, and over models of torchvision: channels made dead beforehand, and removed, change
no output. scripts/fuzz holds random nets against it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torchvision import models

from deadness import removing_the_dead_changes_nothing
from micronets import NETS, randomised
from micronets.compiled import OTHER_BATCH, compiled, graph_of, model_of
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe

FREE = [name for name, row in NETS.items() if row.free > 0]
_SAID: Counter[str] = Counter()


@pytest.mark.parametrize("name", FREE)
def test_removing_dead_channels_changes_nothing(name: str) -> None:
    found = compiled(name, 0.5, 0)
    batch = OTHER_BATCH if graph_of(name).dynamic_batch else 2
    why = removing_the_dead_changes_nothing(
        model_of(name), found, NETS[name].inputs(batch), ratio=0.5, seed=0, multiple_of=1
    )
    _SAID[why] += 1


def test_the_law_applies_to_most() -> None:
    if sum(_SAID.values()) == len(FREE):  # not where some were picked
        assert _SAID[""] > 0.5 * len(FREE), _SAID


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_removing_dead_channels_of_known_models_changes_nothing(name: str) -> None:
    model = randomised(getattr(models, name)(weights=None, num_classes=10))
    image, other = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 64, 64)
    found = compile_model(model, (image,), Recipe.of(ratio=0.5, criterion="random"))
    assert found.proof.same_inputs == ()
    assert removing_the_dead_changes_nothing(model, found, (other,), ratio=0.5) == ""
