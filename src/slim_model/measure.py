"""measure: the dense and the small model, run in turns -> how much faster, with an interval.

A runtime is one row of RUNTIMES: whether it can be used here, and how it makes one run of an artifact.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from slim_model.errors import InputError

Run = Callable[[], object]
Clock = Callable[[], int]

MIN_ROUNDS = 5
"""Taken even where the time budget is spent: fewer say nothing about the spread."""
SHORTEST_SAMPLE_NS = 1_000_000
"""A run shorter than this is repeated within one sample, so that the clock and the call cost nothing."""
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds one run took: the median and the 10th and 90th percentile over ``rounds`` samples."""

    runtime: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    threads: int
    batch: int
    device: str
    rounds: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """``speedup`` is the median over rounds of dense time / slim time; above 1 the small model is faster.

    ``speedup_low`` and ``speedup_high`` bound its bootstrap 95 % interval. Where 1 lies between them, no
    difference was shown.
    """

    runtime: str
    dense: Latency
    slim: Latency
    speedup: float
    speedup_low: float
    speedup_high: float


@dataclass(frozen=True, slots=True)
class Runtime:
    """One row of RUNTIMES.

    ``available()`` is None where the runtime can be used here, else the reason why not. ``prepare(artifact,
    inputs, threads)`` returns a closure that runs the artifact once and comes back when the result is there;
    it may set PyTorch's thread count, which ``compare`` puts back.
    """

    name: str
    device: Literal["cpu", "cuda"]
    artifact: Literal["onnx", "module"]
    """What ``prepare`` takes: the path of an ONNX file, or an ``nn.Module`` (or callable) in eval mode."""
    available: Callable[[], str | None]
    prepare: Callable[[Any, Sequence[Tensor], int], Run]


def compare(
    runtime: str | Runtime,
    dense: Any,
    slim: Any,
    inputs: Sequence[Tensor],
    *,
    threads: int = 1,
    rounds: int = 60,
    budget_s: float = 10.0,
    clock: Clock = time.perf_counter_ns,
) -> Comparison:
    """Time two artifacts on the same inputs, in turns, so that what disturbs one disturbs the other.

    Stops after ``rounds`` pairs, or when ``budget_s`` seconds are spent with warm-up and MIN_ROUNDS pairs are
    taken. Raises InputError where the runtime is unknown or cannot be used here.
    """
    if threads < 1 or rounds < 1:
        raise InputError(f"cannot measure with threads={threads} and rounds={rounds}: both start at 1.")
    row = usable(runtime)
    with _quiet():
        runs = row.prepare(dense, inputs, threads), row.prepare(slim, inputs, threads)
        dense_ms, slim_ms = interleave(*runs, rounds=rounds, budget_s=budget_s, clock=clock)
    speedup, low, high = paired_ratio(dense_ms, slim_ms)
    batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 1

    def latency(samples_ms: Sequence[float]) -> Latency:
        p10, median, p90 = (float(value) for value in np.percentile(samples_ms, [10, 50, 90]))
        return Latency(row.name, median, p10, p90, threads, batch, row.device, len(samples_ms))

    return Comparison(row.name, latency(dense_ms), latency(slim_ms), speedup, low, high)


def usable(runtime: str | Runtime) -> Runtime:
    """The row of a name (a row stands for itself), or InputError where it is unknown or of no use here."""
    if isinstance(runtime, str) and runtime not in RUNTIMES:
        raise InputError(f"unknown runtime '{runtime}': choose from {', '.join(RUNTIMES)}.")
    row = RUNTIMES[runtime] if isinstance(runtime, str) else runtime
    reason = row.available()
    if reason is not None:
        names = ", ".join(name for name, other in RUNTIMES.items() if other.available() is None)
        raise InputError(f"cannot measure with '{row.name}': {reason}. Usable here: {names}.")
    return row


def interleave(
    dense: Run, slim: Run, *, rounds: int, budget_s: float, clock: Clock = time.perf_counter_ns
) -> tuple[list[float], list[float]]:
    """Milliseconds a run of each, one pair of samples a round; dense goes first in even rounds."""
    start = clock()
    budget_ns = int(budget_s * 1e9)
    runs = dense, slim
    repeats = [_repeats(warm_up(run, clock, budget_ns // 4)) for run in runs]
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        if number >= MIN_ROUNDS and clock() - start >= budget_ns:
            break
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            samples[side].append(_sample_ms(runs[side], repeats[side], clock))
    return samples


def warm_up(run: Run, clock: Clock, limit_ns: int) -> float:
    """Run until steady: the last three runs were no more than 5 % faster than all before. Returns ns a run.

    Takes at least six runs, unless ``limit_ns`` is spent after two.
    """
    start = clock()
    taken: list[int] = []
    while True:
        before = clock()
        run()
        after = clock()
        taken.append(after - before)
        steady = len(taken) >= 6 and min(taken[-3:]) >= 0.95 * min(taken[:-3])
        if steady or (len(taken) >= 2 and after - start >= limit_ns):
            return float(np.median(taken[-3:]))


def paired_ratio(dense_ms: Sequence[float], slim_ms: Sequence[float]) -> tuple[float, float, float]:
    """The median of dense/slim over the rounds, and its 95 % percentile bootstrap interval (always alike).

    ``([2, 4, 6], [1, 2, 3]) -> (2.0, 2.0, 2.0)``: a machine that slows down slows both.
    """
    ratios = np.asarray(dense_ms) / np.asarray(slim_ms)
    picks = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def _repeats(run_ns: float) -> int:
    return max(1, min(1000, int(np.ceil(SHORTEST_SAMPLE_NS / max(run_ns, 1.0)))))


def _sample_ms(run: Run, repeats: int, clock: Clock) -> float:
    """One untimed run, then ``repeats`` timed ones: caches the other model filled are not this one's cost.

    Without it, nets of 0.1 to 7 ms came out 8 to 22 % slower in turns with resnet18 than alone.
    """
    run()
    before = clock()
    for _ in range(repeats):
        run()
    return (clock() - before) / repeats / 1e6


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection between two readings of the clock; afterwards PyTorch's thread count as found."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def _onnxruntime_missing() -> str | None:
    return None if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"


def _onnxruntime_cuda_missing() -> str | None:
    if reason := _onnxruntime_missing():
        return reason
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider (onnxruntime-gpu has)"
    return _cuda_missing()


def _cuda_missing() -> str | None:
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def _session(path: str | Path, threads: int, provider: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Two sessions live side by side: the threads of the one must not spin while the other runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise InputError(f"cannot measure: onnxruntime could not start its {provider}; its log says why.")
    return session


def _onnxruntime(path: str | Path, inputs: Sequence[Tensor], threads: int) -> Run:
    session = _session(path, threads, "CPUExecutionProvider")
    names = [value.name for value in session.get_inputs()]
    feed = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}
    return lambda: session.run(None, feed)


def _onnxruntime_cuda(path: str | Path, inputs: Sequence[Tensor], threads: int) -> Run:
    """Inputs and outputs stay on the device: the copies to and from it are not timed."""
    import onnxruntime

    session = _session(path, threads, "CUDAExecutionProvider")
    binding = session.io_binding()
    for value, tensor in zip(session.get_inputs(), inputs, strict=True):
        array = tensor.detach().cpu().numpy()
        binding.bind_ortvalue_input(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for value in session.get_outputs():
        binding.bind_output(value.name, "cuda")

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _pytorch(module: Callable[..., object], inputs: Sequence[Tensor], threads: int) -> Run:
    torch.set_num_threads(threads)
    values = [value.detach().cpu() for value in inputs]

    @torch.inference_mode()
    def run() -> None:
        module(*values)

    return run


def _pytorch_cuda(module: Callable[..., object], inputs: Sequence[Tensor], threads: int) -> Run:
    """A module is copied to the device; any other callable must live there already."""
    torch.set_num_threads(threads)
    there = copy.deepcopy(module).to("cuda") if isinstance(module, nn.Module) else module
    values = [value.detach().to("cuda") for value in inputs]

    @torch.inference_mode()
    def run() -> None:
        there(*values)
        torch.cuda.synchronize()

    return run


RUNTIMES: dict[str, Runtime] = {
    row.name: row
    for row in (
        Runtime("onnxruntime", "cpu", "onnx", _onnxruntime_missing, _onnxruntime),
        Runtime("onnxruntime-cuda", "cuda", "onnx", _onnxruntime_cuda_missing, _onnxruntime_cuda),
        Runtime("pytorch", "cpu", "module", lambda: None, _pytorch),
        Runtime("pytorch-cuda", "cuda", "module", _cuda_missing, _pytorch_cuda),
    )
}


def environment() -> dict[str, Any]:
    """What a number depends on, and nothing that names the machine or its user."""
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "instruction_set": instruction_set(),
        "logical_cores": os.cpu_count(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": _version("onnx"),
        "onnxruntime": _version("onnxruntime", "onnxruntime-gpu"),
        "devices": devices,
    }


def instruction_set() -> str:
    """The vector instructions PyTorch's CPU kernels use: AVX512, AVX2, NEON, SVE256, or DEFAULT."""
    found = torch.backends.cpu.get_cpu_capability()
    if found == "DEFAULT" and platform.machine().lower() in ("arm64", "aarch64"):
        return "NEON"
    return found


def vector_width_channels(device: str) -> int:
    """The block of channels the kernels of ``device`` ("cpu", "cuda", "cuda:1") work on at once.

    On a CPU the float32 lanes of a vector; 8 on CUDA, what float16 tensor cores want, and where unknown.
    """
    if device.partition(":")[0] != "cpu":
        return 8
    return {"AVX512": 16, "AVX2": 8, "NEON": 4}.get(instruction_set(), 8)


def _cpu_name() -> str:
    if platform.system() == "Linux":
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError):
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def _version(*distributions: str) -> str | None:
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None
