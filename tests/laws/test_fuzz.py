"""Some random nets, the same ones at every run; scripts/fuzz takes other ones, and more of them."""

from __future__ import annotations

from collections import Counter

from fuzzing import drawn, fuzz
from randomlaws import Case, Outcome
from randomnets import STEPS

NETS = 24


def test_random_nets_are_proven_right_or_refused() -> None:
    statuses = Counter[str]()

    def count(case: Case, outcome: Outcome) -> None:
        statuses[outcome.status] += 1

    failures = fuzz(range(NETS), count)
    assert not failures, "\n\n".join(f"net {f.number}: {f.error}\n{f.case!r}" for f in failures)
    assert statuses["proven"] >= 0.6 * NETS, statuses


def test_every_step_is_drawn() -> None:
    taken = {step for case in drawn(range(200)) for step in case.net.steps}
    assert len(taken) >= 0.95 * len(STEPS), f"never taken: {STEPS.keys() - taken}"
