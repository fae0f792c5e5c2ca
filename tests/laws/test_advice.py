"""Advice works: what an error tells the user to do is done in a situation that gives it, and ends well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from advice import ELSEWHERE, advice_of_errors
from advice_in_commands import IN_COMMANDS
from advice_in_models import IN_MODELS
from advice_in_rare_cases import IN_RARE_CASES
from advice_in_refusals import IN_REFUSALS
from advice_situations import SITUATIONS
from slim_model.api import in_python_words
from slim_model.errors import SlimError

EVERY = SITUATIONS | IN_COMMANDS | IN_MODELS | IN_REFUSALS | IN_RARE_CASES


def test_all_advice_is_known() -> None:
    """New advice needs a situation in which it is followed."""
    given, known = set(advice_of_errors()), [*EVERY, *ELSEWHERE]
    assert given - set(known) == set(), "advice without a situation"
    assert set(known) - given == set(), "advice that nothing gives any more"
    assert len(known) == len(set(known))


@pytest.mark.parametrize("advice", ELSEWHERE)
def test_tests_elsewhere_are_there(advice: str) -> None:
    file, _, name = ELSEWHERE[advice].partition("::")
    assert f"def {name}(" in (Path(__file__).parents[1] / file).read_text()


@pytest.mark.parametrize("advice", EVERY)
def test_advice_works(advice: str, tmp_path: Path) -> None:
    situation = EVERY[advice]
    with pytest.raises(SlimError) as raised:
        situation.given(tmp_path)
    forms = [".*".join(map(re.escape, words.split("{}"))) for words in (advice, in_python_words(advice))]
    assert re.search("|".join(forms), str(raised.value)), str(raised.value)
    situation.followed(tmp_path)
