"""The most a model takes in a runtime, in a process of its own, so that it is that model's own."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from slim_model.loading.model_file import open_artifact
from slim_model.loading.source import SourceOptions
from slim_model.measuring.runtimes import usable_runtime

_RUNS = 3


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """``peak_bytes``: the most the process ever held; ``own_bytes``: that less what it held with the runtime loaded
    and no model yet; ``device_bytes``: what the model took of a CUDA device, by the device's own count."""

    peak_bytes: int
    own_bytes: int
    device_bytes: int | None


def measure_memory(runtime: str, path: Path, loading: SourceOptions, *, batch: int, threads: int) -> PeakMemory:
    """Open the file and run it a few times in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_here, runtime, path, loading, batch, threads).result()


def _here(runtime: str, path: Path, loading: SourceOptions, batch: int, threads: int) -> PeakMemory:
    row = usable_runtime(runtime)
    for package in row.packages:
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    free = torch.cuda.mem_get_info()[0] if row.device == "cuda" else 0
    _forget_peak()
    before = psutil.Process().memory_info().rss
    opened = open_artifact(path, loading)
    run = row.prepare(opened.runnable, opened.example(batch), threads)
    for _ in range(_RUNS):
        run()
    taken = free - torch.cuda.mem_get_info()[0] if row.device == "cuda" else None
    peak = peak_bytes()
    return PeakMemory(peak, peak - before, taken)


def peak_bytes() -> int:
    """The most memory this process ever held (resident).

    On Linux ``ru_maxrss`` also counts the process that started this one, so the kernel's own mark is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Linux: set the mark that ``peak_bytes`` reads back to what is held now (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
