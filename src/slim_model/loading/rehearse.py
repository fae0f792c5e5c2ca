"""Do something with an untrusted file in a process of its own first: there it may hang, crash or ask for all memory."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from slim_model.errors import NO_MEMORY, InputError, SlimError
from slim_model.loading import limits

try:
    import resource
except ImportError:  # Windows, where nothing is rehearsed
    resource = None  # type: ignore[assignment]

_PATIENCE = 8  # seconds on the clock for each of processor time: other programs run, too
TRUST = "If you made the file yourself, --trust-pickle lifts the limit."


def rehearse(work: Callable[[], Any], *, file_bytes: int, typed_bytes: int = 0) -> Any:
    """What ``work`` returns, which JSON must hold, done by a copy of this process within `limits`.

    Raises the InputError that ``work`` raised there, or one that says which limit was passed. Where copies of a
    process are not to be had (Windows) or not safe (macOS) ``work`` is done here, without these two limits.
    """
    if sys.platform != "linux" or resource is None:
        return work()
    seconds, memory = limits.time_limit(file_bytes, typed_bytes), limits.memory_limit(file_bytes, typed_bytes)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _perform(work, writing, seconds, memory)
    os.close(writing)
    answer: bytes | None = None
    try:
        answer = _read(reading, seconds * _PATIENCE)
    finally:  # also where the user interrupts
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not answer:
        raise InputError(_ending(-status, answer is None, seconds, memory))
    told = json.loads(answer)
    if "refused" in told:
        no_memory = NO_MEMORY in told["refused"]
        raise InputError(_ending(signal.SIGKILL, False, seconds, memory) if no_memory else told["refused"])
    return told["result"] if "result" in told else work()  # a fault of ours shows here as it is


def _perform(work: Callable[[], Any], writing: int, seconds: int, memory: int) -> NoReturn:
    """In the copy: do it, write what came of it, and end without leaving anything behind."""
    try:
        faulthandler.disable()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        torch.set_num_threads(1)  # the threads of the original are not here
        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_CPU, seconds)
        _lower(resource.RLIMIT_AS, _mapped() + memory)
        answer = json.dumps(_done(work)).encode()
        while answer:
            answer = answer[os.write(writing, answer) :]
    finally:
        os._exit(0)


def _done(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": work()}
    except SlimError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": NO_MEMORY}
    except BaseException as error:
        return {"failed": type(error).__name__}


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, hard))


def _mapped() -> int:
    """Bytes of addresses that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _read(reading: int, patience: float) -> bytes | None:
    """What the copy wrote before it ended; None where ``patience`` was over first."""
    parts, ends = list[bytes](), time.monotonic() + patience
    while (left := ends - time.monotonic()) > 0:
        if not select.select([reading], [], [], left)[0]:
            break
        if not (part := os.read(reading, 1 << 16)):
            return b"".join(parts)
        parts.append(part)
    return None


def _ending(number: int, late: bool, seconds: int, memory: int) -> str:
    """Why there is no answer: ``number`` is the signal that ended the copy, SIGKILL where the system had no memory."""
    if late or number in (signal.SIGXCPU, signal.SIGKILL):
        amount = f"{memory / 2**30:.1f} GiB of memory" if not late and number == signal.SIGKILL else f"{seconds} s"
        return f"takes more than {amount} to open and run once, the limit for such a file and such inputs. {TRUST}"
    return f"makes PyTorch crash (signal {number}). The file may be damaged: copy it again."
