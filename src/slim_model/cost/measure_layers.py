"""Measure the layers that a latency table lacks, one by one, and write each result to disk at once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slim_model.cost.latency_store import append_points, read_points
from slim_model.cost.latency_table import NOTHING, PROBES, LatencyTable, Setting, make_table, probe_layers
from slim_model.cost.layer_models import Placed, example_inputs, module_of_layer, stored_bytes, write_onnx
from slim_model.measuring.runtimes import Runtime, TimedCall
from slim_model.measuring.timing import Clock, interleave, without_gc
from slim_model.ops import LayerShape
from slim_model.progress import Progress, say_nothing

ROUNDS, MOST = 15, 60
LAYERS_AT_ONCE = 16
"""Widths of a layer that are timed in turns, at most; ``BYTES`` bounds what they hold together."""
BYTES = 512_000_000
SETTLE_NS = 2_000_000
"""Layers are timed much as in a model, where what other layers left in the caches is in their way too."""
SECONDS = 60.0
"""Given to the widths that are timed in turns, at most."""


@dataclass(frozen=True, slots=True)
class MeasuringJob:
    """Where results go and how they are measured."""

    row: Runtime
    setting: Setting
    cache: Path | None = None
    clock: Clock = time.perf_counter_ns


def measure_layers(placed: Sequence[Placed], job: MeasuringJob, progress: Progress = say_nothing) -> LatencyTable:
    """Measure what the table of the setting does not hold yet: first the probes that tell the width step of each
    kind (of all kinds, where no layers are given), then each layer over its ladder of widths."""
    kinds = {p.layer.kind for p in placed} if placed else set(PROBES)
    probes = [probe_layers(probe, axis) for kind in PROBES if kind in kinds for axis, probe in PROBES[kind].items()]
    points = read_points(job.setting, job.cache)
    with without_gc():
        for number, layers in enumerate(([NOTHING], *probes)):
            progress(f"learning the width step: {number} of {len(probes)}")
            _measure(layers, job, points, progress)
        table = make_table(job.setting, points)
        grids = {tuple(table.grid(p)): p for p in placed}
        for number, (grid, where) in enumerate(grids.items(), 1):
            widths = "x".join(map(str, where.layer.widths))
            progress(f"timing layers: {number} of {len(grids)} ({where.layer.kind} {widths}, {len(grid)} widths)")
            _measure(grid, job, points, progress)
    return make_table(job.setting, points)


def _measure(
    layers: Sequence[LayerShape], job: MeasuringJob, points: dict[LayerShape, float], progress: Progress
) -> None:
    """Add to ``points``, and to the table on disk where there can be one, the layers that are not there yet."""
    for some in split_to_fit([layer for layer in layers if layer not in points]):
        with tempfile.TemporaryDirectory() as folder:
            ready = [_prepare(layer, Path(folder) / f"{n}.onnx", job) for n, layer in enumerate(some)]
            samples = _samples([run for run, _ in ready], job.clock)
        call = points.get(NOTHING, 0.0)
        rows = [(layer, ms_of(ms, n, call)) for layer, ms, (_, n) in zip(some, samples, ready, strict=True)]
        points |= {layer: row["ms"] for layer, row in rows}
        if why := append_points(job.setting, rows, job.cache):
            progress(f"these times are not kept for later runs: {why}")


def _samples(runs: Sequence[TimedCall], clock: Clock) -> list[list[float]]:
    """ms of each run, until a quarter of each's samples agree within 5 %, or MOST rounds are taken."""
    samples: list[list[float]] = [[] for _ in runs]
    while len(samples[0]) < MOST:
        more = interleave(*runs, rounds=ROUNDS, budget_s=SECONDS, settle_ns=SETTLE_NS, clock=clock)
        for taken, new in zip(samples, more, strict=True):
            taken += new
        if all(np.percentile(ms, 25) <= 1.05 * min(ms) for ms in samples):
            break
    return samples


def split_to_fit(layers: Sequence[LayerShape], most_bytes: int = BYTES) -> Iterator[list[LayerShape]]:
    """Parts of ``layers``, in order, that lie in memory together: of at most ``LAYERS_AT_ONCE``, and ``most_bytes``
    unless a single layer has more."""
    part: list[LayerShape] = []
    for layer in layers:
        if part and (len(part) == LAYERS_AT_ONCE or sum(map(stored_bytes, (*part, layer))) > most_bytes):
            yield part
            part = []
        part.append(layer)
    if part:
        yield part


def _prepare(layer: LayerShape, path: Path, job: MeasuringJob) -> tuple[TimedCall, int]:
    """What to time, and how many times the layer is in it."""
    dtype: torch.dtype = getattr(torch, job.setting.dtype)
    inputs = example_inputs(layer, dtype)
    if job.row.artifact == "module":
        return job.row.prepare(module_of_layer(layer, dtype), inputs, job.setting.threads), 1
    copies = write_onnx(layer, path, dtype)
    return job.row.prepare(path, inputs, job.setting.threads), copies


def ms_of(samples_ms: Sequence[float], copies: int = 1, call_ms: float = 0.0) -> dict[str, Any]:
    """What is kept of samples of ``copies`` of one layer: ``ms``, their lower quartile without the call, for one copy,
    and the spread of the ``run``. Other work on the machine only adds to these short samples; where there is much of
    it, it moves the median, but not the order of widths.
    """
    p10, quartile, median, p90 = (round(float(value), 6) for value in np.percentile(samples_ms, [10, 25, 50, 90]))
    alone = round(max(quartile - call_ms, 0.02 * quartile) / copies, 6)
    run = {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "rounds": len(samples_ms)}
    return {"ms": alone, "copies": copies, "run": run}
