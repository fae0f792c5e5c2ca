"""Models run in turns -> how long each takes, and how much faster than the first, with an interval."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.measuring.runtimes import Runtime, TimedCall, usable_runtime

Clock = Callable[[], int]

MIN_ROUNDS = 5
"""Taken even where the time budget is spent: fewer say nothing about the spread."""
SHORTEST_SAMPLE_NS = 1_000_000
"""A run shorter than this is repeated within one sample, so that the clock and the call cost nothing."""
MOST_RUNS = 1000
"""In a turn, where the clock does not see a run pass."""
SETTLE_NS = 10_000_000
"""Run untimed for so long whenever a model's turn comes: caches that the other one filled, and threads of its that
still spin, are not this one's cost (efficientnet_b0 at a quarter of its multiply-adds, after the dense one: 3.0, 2.8,
2.5, 2.4 ms, then 2.35 as alone; with two threads that spin 11 ms for 5.6)."""
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

    @property
    def verdict(self) -> str:
        return verdict(self.speedup_low, self.speedup_high)


def verdict(low: float, high: float) -> str:
    """What the 95 % interval of a speed-up shows: "faster", "slower" or, with 1 inside, "no difference shown"."""
    return "faster" if low > 1 else "slower" if high < 1 else "no difference shown"


def compare(runtime: str | Runtime, dense: Any, slim: Any, inputs: Sequence[Tensor], **options: Any) -> Comparison:
    """``measure`` two artifacts; the options are its own."""
    return measure(runtime, (dense, slim), inputs, **options)[1]


def measure(
    runtime: str | Runtime,
    artifacts: Sequence[Any],
    inputs: Sequence[Tensor],
    *,
    threads: int = 1,
    rounds: int = 60,
    budget_s: float = 10.0,
    clock: Clock = time.perf_counter_ns,
) -> list[Comparison]:
    """Each artifact (as ``slim``) against the first one (as ``dense``), the first against itself included.

    All run on the same inputs, in turns, so that what disturbs one disturbs the others. Stops after ``rounds``
    rounds, or when ``budget_s`` seconds are spent with warm-up and MIN_ROUNDS rounds are taken. Raises InputError
    where the runtime is unknown or cannot be used here.
    """
    if threads < 1 or rounds < 1:
        raise InputError(f"cannot measure with threads={threads} and rounds={rounds}: both start at 1.")
    row = usable_runtime(runtime)
    # All are prepared before any is timed: they share the same minutes, and its disturbances.
    with without_gc():
        runs = [row.prepare(artifact, inputs, threads) for artifact in artifacts]
        samples = interleave(*runs, rounds=rounds, budget_s=budget_s, clock=clock)
    batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 1

    def latency(samples_ms: Sequence[float]) -> Latency:
        p10, median, p90 = (float(value) for value in np.percentile(samples_ms, [10, 50, 90]))
        return Latency(row.name, median, p10, p90, threads, batch, row.device, len(samples_ms))

    first = latency(samples[0])
    return [Comparison(row.name, first, latency(own), *paired_ratio(samples[0], own)) for own in samples]


def interleave(
    *runs: TimedCall, rounds: int, budget_s: float, settle_ns: int = SETTLE_NS, clock: Clock = time.perf_counter_ns
) -> tuple[list[float], ...]:
    """Milliseconds a run of each, one sample of each a round, in the order given in even rounds, else backwards."""
    settle_ns = settle_ns if len(runs) > 1 else 0  # alone, nobody else was there before
    start = clock()
    budget_ns = int(budget_s * 1e9)
    taken = [warm_up(run, clock, budget_ns // (2 * len(runs))) for run in runs]
    # Samples of all last about as long: on a busy machine the longer one of two is interrupted more often.
    sample_ns = max(*taken, SHORTEST_SAMPLE_NS)
    repeats = [_repeats(run_ns, sample_ns) for run_ns in taken]
    samples: tuple[list[float], ...] = tuple([] for _ in runs)
    for number in range(rounds):
        if number >= MIN_ROUNDS and clock() - start >= budget_ns:
            break
        for which in range(len(runs)) if number % 2 == 0 else reversed(range(len(runs))):
            samples[which].append(_sample_ms(runs[which], repeats[which], settle_ns, clock))
    return samples


def warm_up(run: TimedCall, clock: Clock, limit_ns: int) -> float:
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
            return float(min(taken[-3:]))  # one that nothing interrupted


def paired_ratio(dense_ms: Sequence[float], slim_ms: Sequence[float]) -> tuple[float, float, float]:
    """The median of dense/slim over the rounds, and its 95 % percentile bootstrap interval (always alike).

    ``([2, 4, 6], [1, 2, 3]) -> (2.0, 2.0, 2.0)``: a machine that slows down slows both.
    """
    ratios = np.asarray(dense_ms) / np.asarray(slim_ms)
    picks = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def _repeats(run_ns: float, sample_ns: float) -> int:
    return max(1, min(MOST_RUNS, round(sample_ns / max(run_ns, 1.0))))


def _sample_ms(run: TimedCall, repeats: int, settle_ns: int, clock: Clock) -> float:
    begun = clock()
    for _ in range(MOST_RUNS):
        run()
        before = clock()
        if before - begun >= settle_ns:
            break
    for _ in range(repeats):
        run()
    return (clock() - before) / repeats / 1e6


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """No garbage collection between two readings of the clock; afterwards PyTorch's thread count as found."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    if collecting:
        gc.collect()
        gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
