"""fuzzing: tries random nets by their numbers; what fails is shrunk by hypothesis to the smallest net that fails so."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis.database import InMemoryExampleDatabase

from randomlaws import Case, Outcome, cases, outcome_of

_CHOICES = 8192  # bytes of random choices; a net takes some hundred
_PATIENCE = 60  # seconds that shrinking may take
_SHRUNK = 2  # failures of one kind that are made small; the others are counted only


_SETTINGS = settings(
    database=InMemoryExampleDatabase(),  # hands a failure over to be shrunk
    phases=[Phase.reuse, Phase.shrink],
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """``number`` draws the net again; ``case`` is the smallest one that was found."""

    number: int
    error: str
    case: Case


def fuzz(numbers: range, on_net: Callable[[Case, Outcome], None] = lambda case, outcome: None) -> list[Failure]:
    """Try the nets of these numbers, each always the same; the failures, and ``on_net`` for each net that is none."""
    torch.set_num_threads(1)
    failures: list[Failure] = []
    kinds = Counter[str]()
    for number in numbers:
        trial, tried = _trial(on_net)
        try:
            trial.hypothesis.fuzz_one_input(random.Random(number).randbytes(_CHOICES))
        except Exception as error:
            kinds[_kind(error)] += 1
            if kinds[_kind(error)] <= _SHRUNK:
                failures.append(Failure(number, *_smallest(trial, tried)))
            else:
                failures.append(Failure(number, _said(error), tried[-1][0]))
    return failures


def drawn(numbers: range) -> Iterator[Case]:
    """The cases of these numbers, without trying them."""
    cases_drawn: list[Case] = []

    @_SETTINGS
    @given(cases())
    def note(case: Case) -> None:
        cases_drawn.append(case)

    for number in numbers:
        note.hypothesis.fuzz_one_input(random.Random(number).randbytes(_CHOICES))  # type: ignore[attr-defined]
        yield from cases_drawn
        cases_drawn.clear()


def _trial(on_net: Callable[[Case, Outcome], None]) -> tuple[Any, list[tuple[Case, Exception]]]:
    """A hypothesis test of one net, and where it writes down the nets that failed."""
    failed: list[tuple[Case, Exception]] = []
    give_up: list[float] = []

    @settings(_SETTINGS, database=InMemoryExampleDatabase())
    @given(cases())
    def trial(case: Case) -> None:
        if failed and time.monotonic() > give_up[0]:
            return
        try:
            outcome = outcome_of(case)
        except Exception as error:
            failed.append((case, error))
            give_up.append(time.monotonic() + _PATIENCE)
            raise
        if not failed:
            on_net(case, outcome)
        if outcome.status == "invalid":
            reject()

    return trial, failed


def _smallest(trial: Any, failed: list[tuple[Case, Exception]]) -> tuple[str, Case]:
    with contextlib.suppress(Exception):
        trial()
    case, error = failed[-1]  # hypothesis ends with the smallest
    return _said(error), case


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:600]}"


def _kind(error: Exception) -> str:
    return re.sub(r"[\d.e+-]+", "#", _said(error))[:80]
