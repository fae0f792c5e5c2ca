"""The hostile files by the command, each in a process of its own: exit code, seconds and memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostile_files import HOSTILE
from model_files import NET_SOURCE

_GIB = 2**30
MOST_SECONDS, MOST_BYTES = 20, 2 * _GIB
"""Of processor time, as the wall clock tells of what else the machine does; memory is at least what this process has,
of which each command is a copy at first."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one command ended; ``said``: its last line."""

    name: str
    exit_code: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    said: str

    @property
    def fine(self) -> bool:
        """Refused, in the words that the table has, within the limits."""
        words = HOSTILE[self.name][2]
        return (
            self.exit_code == 2 and self.cpu_s <= MOST_SECONDS and self.peak_bytes < MOST_BYTES and words in self.said
        )


def run_hostile() -> Iterator[Ended]:
    """Each file, one after another."""
    for name in HOSTILE:
        with tempfile.TemporaryDirectory() as folder:
            yield _run(name, Path(folder))


def _run(name: str, folder: Path) -> Ended:
    make, options, _ = HOSTILE[name]
    (folder / "net.py").write_text(textwrap.dedent(NET_SOURCE))
    make(folder / "in.pt")
    given = [f"--arch={options['arch']}"] if "arch" in options else []
    given += [f"--input={spec}" for spec in options.get("inputs", ())]
    command = [sys.executable, "-m", "slim_model", "in.pt", "out.onnx", "--no-bench", *given]
    started = time.perf_counter()
    with open(folder / "said", "w+") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        words = " ".join(said.read().split())
    seconds = time.perf_counter() - started
    return Ended(name, process.returncode, round(seconds, 1), round(_cpu(used), 1), used.ru_maxrss * 1024, words)


def _cpu(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime
