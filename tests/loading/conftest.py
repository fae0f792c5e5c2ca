"""What the tests of loading take: a place for a file, and a place where hostile code would leave its mark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model_files import code_that_creates


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The nets here are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "in.pt"


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that code from a malicious model would create."""
    return tmp_path / "ran"


@pytest.fixture
def clean_imports() -> Iterator[None]:
    """Scripts that a test loads are forgotten afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith(("torch", "timm")):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def evil_module(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("evil_module.py", "hubconf.py"):
        ran.with_name(name).write_text(f"{code_that_creates(ran)}\ndef net(): pass\n")
    monkeypatch.syspath_prepend(str(ran.parent))
    monkeypatch.chdir(ran.parent)
