"""Work that may hang, crash or fill the memory, in a copy of this process that has little of each."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable

import torch

MEMORY = 2 * 2**30  # bytes beyond what this process has
SECONDS = 60  # of processor time, its own and that of its children each


def in_limits(work: Callable[[], str]) -> str:
    """What ``work`` returns; what ended it, in capitals, where nothing came back."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _perform(work, writing)
    os.close(writing)
    answer = _read(reading)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return answer or f"ENDED BY {os.waitstatus_to_exitcode(status)}"


def _perform(work: Callable[[], str], writing: int) -> None:
    try:
        torch.set_num_threads(1)
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.RLIM_INFINITY))
        try:
            answer = work()
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            answer = f"RAISED {type(error).__name__}: {error}"
        os.write(writing, answer.encode()[:60_000])
    finally:
        os._exit(0)


def _read(reading: int) -> str:
    """What came before the other end was closed, or 5 times ``SECONDS`` were over."""
    ready, _, _ = select.select([reading], [], [], 5 * SECONDS)
    answer = os.read(reading, 1 << 16).decode() if ready else ""
    os.close(reading)
    return answer
