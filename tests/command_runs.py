"""Runs of the command: in this process, or in one of their own; and what a run must leave alone."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slim_model
import small_nets
from slim_model import cli
from small_nets import SHAPE

ARCH = f"{small_nets.__file__}:Residual"
OLD = b"an older file"
QUICK = ("--no-bench", "--multiple-of", "1")


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        return lines[0]


Command = Callable[..., Ran]


def untouched(out: Path) -> bool:
    """The file from earlier is as it was, and alone."""
    return out.read_bytes() == OLD and [path.name for path in out.parent.iterdir()] == [out.name]


def widths(report: dict[str, Any]) -> dict[str, int]:
    return {group["name"]: group["after"] for group in report["groups"]}


RESIDUAL = ("--arch", ARCH, "--input", SHAPE)


def on_a_full_disk(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work`` with a system that refuses to write files of more than 1 kB."""

    def limited(*arguments: Any, **options: Any) -> Any:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            return work(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


TIMEOUT = 120  # seconds; some 5 are needed on a quiet machine


def process(*arguments: Any, code: str = "from slim_model.cli import main; main()") -> subprocess.Popen[str]:
    """The command in a process of its own, as from a terminal: what a shell starts in the background ignores SIGINT,
    and so do its children."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(slim_model.__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def forked(*arguments: Any, before: Callable[[], object] = lambda: None, **streams: Any) -> subprocess.Popen[str]:
    """``process`` without its start: a copy of this process, which has PyTorch already, runs the command where another
    program would begin. ``before`` is done first; ``streams`` as those of ``Popen``, pipes where none are given."""

    def run() -> None:
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # else Popen waits for the program
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            gc.enable()
            before()
            cli.main([*map(str, arguments)])
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)

    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(["false"], text=True, preexec_fn=run, restore_signals=False, **given)


def wait_for(running: subprocess.Popen[str], stage: str) -> None:
    assert running.stderr is not None
    said = iter(running.stderr.readline, "")
    assert any(stage in line for line in said), "the stage never came"
