"""A search runs few points of a sweep, and those that are worth it."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest

from slim_model.cli import run as command
from slim_model.commands.point_search import searched
from slim_model.errors import InputError

AXES: dict[str, list[Any]] = {"ratio": [n / 20 for n in range(1, 20)], "criterion": ["a", "b", "c", "d", "e", "f"]}
POINTS = {f"{ratio}{criterion}": (ratio, criterion) for ratio, criterion in itertools.product(*AXES.values())}


def report_of(name: str) -> dict[str, Any]:
    """Criterion c loses least; d fails. The more is removed, the cheaper and the worse."""
    ratio, criterion = POINTS[name]
    accuracy = 0.9 - ratio**2 / 2 - (0 if criterion == "c" else 0.3)
    return {"slim": {"macs": 1e6 * (1 - ratio)}, "latency": [], "steps": [{"accuracy": accuracy, "did": {}}]}


def found(count: int, seed: int) -> list[str]:
    """The points of a search, whose reports are there when it goes on."""
    reports: dict[str, dict[str, Any]] = {}
    order = []
    for name in searched(AXES, list(POINTS), reports, count=count, seed=seed):
        order.append(name)
        if POINTS[name][1] != "d":
            reports[name] = report_of(name)
    return order


@pytest.fixture(autouse=True)
def optuna() -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")


def test_it_goes_where_points_are_good() -> None:
    """Chance gives a sixth of the points the best criterion; a search half as many again or more."""
    order = found(40, seed=0)
    assert len(order) == len(set(order)) == 40
    assert sum(POINTS[name][1] == "c" for name in order) >= 1.5 * 40 / 6


def test_the_same_seed_finds_the_same() -> None:
    assert found(6, seed=3) == found(6, seed=3)
    assert found(6, seed=3) != found(6, seed=4)


def test_no_more_points_than_there_are() -> None:
    axes = {"ratio": [0.3, 0.5]}
    assert sorted(searched(axes, ["x", "y"], {}, count=9, seed=0)) == ["x", "y"]


def test_optuna_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="pip install optuna"):
        next(searched(AXES, list(POINTS), {}, count=2, seed=0))


def test_no_points_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["sweep", "recipe.toml", "--ratio", "0.3,0.5", "--search", "0"]) == 2
    assert "--search" in capsys.readouterr().err
