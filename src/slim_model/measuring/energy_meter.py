"""The joules one run draws, where the machine has a meter. A meter is one row of METERS."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from slim_model.measuring.runtimes import TimedCall
from slim_model.measuring.timing import Clock


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
    meter: Meter, prepare: Callable[[], TimedCall], *, least_s: float = 2.0, clock: Clock = time.perf_counter_ns
) -> Energy:
    """Run what ``prepare`` makes for ``least_s`` seconds beside the meter."""
    if (reason := meter.available()) is not None:
        return Energy(None, f"not available: {reason}")
    run = prepare()
    run()
    drawn, start, runs = meter.start(), clock(), 0
    while runs == 0 or clock() - start < least_s * 1e9:
        run()
        runs += 1
    return Energy(drawn() / runs, meter.name)


def rapl_meter(powercap: Path = Path("/sys/class/powercap")) -> Meter:
    """The counters of RAPL (Running Average Power Limit), which Intel and AMD processors have and Linux shows in the
    folder ``powercap``."""

    def available() -> str | None:
        if not _packages(powercap):
            return "this machine shows no RAPL counters"
        try:
            _counters(powercap)
        except OSError as error:
            return f"the RAPL counters cannot be read ({error.strerror}); root can"
        return None

    def start() -> Callable[[], float]:
        before = _counters(powercap)
        spans = [int((package / "max_energy_range_uj").read_text()) for package in _packages(powercap)]

        def drawn() -> float:
            """Counters start again at 0 when they are full."""
            counters = zip(_counters(powercap), before, spans, strict=True)
            return sum((now - then) % (span + 1) for now, then, span in counters) / 1e6

        return drawn

    return Meter("RAPL, processor package", "cpu", available, start)


def _packages(powercap: Path) -> list[Path]:
    """One folder a processor package; its parts (cores, memory) are in folders with a second number."""
    return sorted(p for p in powercap.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", p.name))


def _counters(powercap: Path) -> list[int]:
    return [int((package / "energy_uj").read_text()) for package in _packages(powercap)]


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


METERS = {meter.device: meter for meter in (rapl_meter(), Meter("NVML, whole card", "cuda", _no_nvml, _nvml))}
"""One for each device."""
