"""What is chosen where the user named nothing."""

from __future__ import annotations

import pytest

from slim_model.effort import EFFORTS, WITHOUT_DATA
from slim_model.errors import InputError
from slim_model.recipe import Recipe

DATA = "npz:samples.npz"


def chosen(**options: object) -> tuple[object, ...]:
    recipe = Recipe.of(**options).decided()
    return recipe.ranking.criterion, recipe.budget.allocate, recipe.recovery.recover, recipe.data.samples


@pytest.mark.parametrize("name", EFFORTS)
def test_an_effort_is_its_row(name: str) -> None:
    row = EFFORTS[name]
    assert chosen(data=DATA, effort=name, of="macs") == (row.criterion, row.allocate, row.recover, row.samples)


def test_the_default_follows_from_what_is_given() -> None:
    balanced = EFFORTS["balanced"]
    assert Recipe.of(data=DATA).decided().effort.effort == "balanced"
    assert chosen(data=DATA, target="macs=1M") == chosen(data=DATA, target="macs=1M", effort="balanced")
    assert chosen(data=DATA) == (balanced.criterion, None, balanced.recover, balanced.samples)
    assert chosen() == chosen(effort="best") == (WITHOUT_DATA.criterion, None, "none", WITHOUT_DATA.samples)


def test_every_option_that_is_given_stands() -> None:
    given = {"criterion": "fpgm", "allocate": "greedy", "recover": "bias", "samples": 7}
    assert chosen(data=DATA, effort="best", of="macs", **given) == ("fpgm", "greedy", "bias", 7)


def test_what_cannot_be_judged_is_shared_out_as_before() -> None:
    """Rounds, and one ranking over all layers, say themselves how layers share."""
    assert chosen(data=DATA, of="macs", iterations=2)[1] is None
    assert chosen(data=DATA, of="macs", scope="global")[1] is None


def test_what_was_decided_is_decided_once() -> None:
    """A report repeats its run whatever later efforts choose; a recipe that is open stays open."""
    recipe = Recipe.of(data=DATA, of="macs")
    once = recipe.decided()
    assert once.decided() == once
    assert once.but(effort="best").decided().data.samples == EFFORTS["balanced"].samples
    assert recipe.but(effort="best").decided().data.samples == EFFORTS["best"].samples


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(InputError, match="effort 'most' is unknown; it is one of quick, balanced, best"):
        Recipe.of(effort="most")
