"""What tests of training share."""

from __future__ import annotations

import pytest

from finetuning import EXAMPLE
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.recipe import Recipe
from small_nets import Residual, trained


@pytest.fixture(scope="session")
def removed() -> Compiled:
    return compile_model(trained(Residual()), EXAMPLE, Recipe.of(0.5, multiple_of=1))
