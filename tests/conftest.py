"""What holds for all tests: no latency table that was measured on this machine changes a width, and what is traced for
one test is there for the others."""

from __future__ import annotations

import atexit
import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from cheaper_processes import collect_less_often, read_onnx_operators_once
from slim_model.measuring import timing


@pytest.fixture(autouse=True)
def no_tables(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for caches is an empty one."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def operators_of_onnx_read_once() -> None:
    read_onnx_operators_once()


@pytest.fixture(autouse=True, scope="session")
def few_rounds() -> None:
    """Latency is measured in 12 rounds where nobody says how many, not in 60: no test asserts on time."""
    timing.measure.__kwdefaults__["rounds"] = 12


def pytest_collection_finish() -> None:
    collect_less_often()


_ran: list[str] = []
"""Tests since objects were last frozen."""


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Graphs that tests share are added to what lives as long as the process."""
    _ran.append(item.nodeid)
    if len(_ran) >= 100 and (nextitem is None or nextitem.path != item.path):
        _ran.clear()
        collect_less_often()


def pytest_unconfigure() -> None:
    """Else libraries take what is frozen for leaks, and print screens of them."""
    if not ONE_OF_SEVERAL:
        gc.unfreeze()


ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ
if ONE_OF_SEVERAL:
    atexit.register(os._exit, 0)
    """A process that runs tests ends at once: to take apart what it holds takes it 14 s."""


class ByNet(LoadScopeScheduling):
    """All tests of one micro-net run in one process, because it traces the net once, and so do all others of a file."""

    nets: frozenset[str] = frozenset()

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        parameters = test.partition("[")[2].removesuffix("]").split("-")
        return next((name for name in parameters if name in self.nets), file)


EVERY = 40
"""With ``--quick``, of the tests of a file one in so many; of those in WHOLE all."""
WHOLE = ("test_architecture.py", "test_options.py", "test_passes.py", "test_walk.py", "test_couple.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a part of the tests of each file: an answer in two minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    seen: Counter[Path] = Counter()
    chosen, left = [], []
    for item in items:
        taken = item.path.name in WHOLE or seen[item.path] % EVERY == EVERY // 2
        (chosen if taken else left).append(item)
        seen[item.path] += 1
    config.hook.pytest_deselected(items=left)
    items[:] = chosen


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    if config.getvalue("dist") != "loadscope":
        return None
    from micronets import NETS  # loads torch, which only the processes that run tests need otherwise

    scheduler = ByNet(config, log)
    scheduler.nets = frozenset(NETS)
    return scheduler
