"""The joules one run draws, where the machine has a meter. A meter is one row of METERS."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from slim_model.measuring.runtimes import Run
from slim_model.measuring.timing import Clock

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of RAPL (Running Average Power Limit), which Intel and AMD processors have."""


@dataclass(frozen=True, slots=True)
class Meter:
    """``start()`` returns a function that tells the joules drawn since: by the whole processor package or card, so
    what it draws when idle, and for others, is in it."""

    name: str
    device: str
    available: Callable[[], str | None]
    start: Callable[[], Callable[[], float]]


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules a run; ``source`` is the meter, or why there is none ("not available: ...") and ``joules`` is None."""

    joules: float | None
    source: str


def measure_energy(
    device: str, prepare: Callable[[], Run], *, least_s: float = 2.0, clock: Clock = time.perf_counter_ns
) -> Energy:
    """Run what ``prepare`` makes for ``least_s`` seconds beside the meter of ``device`` ("cpu" or "cuda")."""
    meter = METERS[device]
    if (reason := meter.available()) is not None:
        return Energy(None, f"not available: {reason}")
    run = prepare()
    run()
    drawn, start, runs = meter.start(), clock(), 0
    while runs == 0 or clock() - start < least_s * 1e9:
        run()
        runs += 1
    return Energy(drawn() / runs, meter.name)


def _packages() -> list[Path]:
    """One folder a processor package; its parts (cores, memory) are in folders with a second number."""
    return sorted(p for p in POWERCAP.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", p.name))


def _no_rapl() -> str | None:
    if not _packages():
        return "this machine shows no RAPL counters"
    try:
        _counters()
    except OSError as error:
        return f"the RAPL counters cannot be read ({error.strerror}); root can"
    return None


def _counters() -> list[int]:
    return [int((package / "energy_uj").read_text()) for package in _packages()]


def _rapl() -> Callable[[], float]:
    before = _counters()
    spans = [int((package / "max_energy_range_uj").read_text()) for package in _packages()]

    def drawn() -> float:
        """Counters start again at 0 when they are full."""
        return sum((a - b) % (span + 1) for a, b, span in zip(_counters(), before, spans, strict=True)) / 1e6

    return drawn


def _no_nvml() -> str | None:
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if not importlib.util.find_spec("pynvml"):
        return "NVML is not installed: pip install nvidia-ml-py"
    import pynvml

    try:
        _nvml()
    except pynvml.NVMLError as error:
        return f"NVML says: {error}"
    return None


def _nvml() -> Callable[[], float]:
    import pynvml

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(card) - before) / 1e3


METERS = {
    meter.device: meter
    for meter in (
        Meter("RAPL, processor package", "cpu", _no_rapl, _rapl),
        Meter("NVML, whole card", "cuda", _no_nvml, _nvml),
    )
}
