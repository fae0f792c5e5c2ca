"""profile: measured latencies of single layers -> the latency of a model at any widths, and the width step.

``survey`` measures; this file keeps what was measured on disk and reads between the points.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from slim_model.cost import Meter
from slim_model.couple import Coupling
from slim_model.errors import InputError
from slim_model.layers import Placed, at_widths, layers_of
from slim_model.measure import cpu_flags, environment
from slim_model.ops import Layer
from slim_model.runtimes import RUNTIMES, Runtime, version_of

RUNGS = {0: (1.0,), 1: tuple(n / 8 for n in range(1, 9)), 2: (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1), 3: (1 / 4, 1 / 2, 1)}
"""Parts of the dense width that are measured, by the number of widths that vary at once."""
CANDIDATES = (64, 32, 16, 8, 4, 2)
"""Width steps looked for, the widest first."""
PROBED = tuple(64 + n for n in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
"""Widths that tell the steps apart: one octave with all remainders that matter."""
FLAT = 0.25
"""A step is one if rounding up to it costs no more than this part of what so many more channels cost on average."""
NOTHING = Layer("nothing", 1, (), ())
_SQUARE = ((28, 28), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0,))
_POINT = ((28, 28), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), (0, 0), (0,))
PROBES: dict[str, dict[int, Layer]] = {
    "conv": {1: Layer("conv", 1, _SQUARE, (1, 64, 64)), 2: Layer("conv", 1, _SQUARE, (1, 64, 64))},
    "pointwise": {1: Layer("pointwise", 1, _POINT, (1, 128, 128)), 2: Layer("pointwise", 1, _POINT, (1, 128, 128))},
    "depthwise": {0: Layer("depthwise", 1, _SQUARE, (64, 1, 1))},
    "linear": {0: Layer("linear", 196, (), (256, 256)), 1: Layer("linear", 196, (), (256, 256))},
}
"""By kind and the width that is varied: the layer on which its step is learned."""


_MEASURED_AS = 2
"""Goes up with any change to how layers are timed: figures of two ways do not belong in one table."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a table holds for. Another processor, runtime, version, ... has another table."""

    machine: str
    runtime: str
    version: str
    threads: int
    dtype: str
    batch: int


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """``points``: ms of single layers, without the call; ``steps`` by (kind, index of the width); ``penalties`` by
    the same and a power of two below the step: how much dearer a width is that it, and no more, divides."""

    setting: Setting
    points: Mapping[Layer, float]
    steps: Mapping[tuple[str, int], int]
    penalties: Mapping[tuple[str, int], Mapping[int, float]]

    def width_step(self, kind: str | None = None) -> int:
        """The step that suits all widths of a kind of layer; of all kinds: the one most of them have (the wider of
        two as frequent). 1 where none was found."""
        steps = [step for (name, _), step in self.steps.items() if step > 1 and kind in (None, name)]
        if kind is not None:
            return max(steps, default=1)
        return max(steps, key=lambda step: (steps.count(step), step), default=1)

    def rungs(self, placed: Placed) -> list[tuple[int, ...]]:
        """The widths at which a layer is measured, for each of its widths."""
        parts = RUNGS[min(sum(placed.free), 3)]
        kind, widths = placed.layer.kind, placed.layer.widths
        return [
            ladder(width, self.steps.get((kind, i), 1), parts) if free else (width,)
            for i, (width, free) in enumerate(zip(widths, placed.free, strict=True))
        ]

    def grid(self, placed: Placed) -> list[Layer]:
        """What must be measured to know the layer at all widths."""
        return [replace(placed.layer, widths=widths) for widths in itertools.product(*self.rungs(placed))]

    def covers(self, placed: Placed) -> bool:
        return all(layer in self.points for layer in self.grid(placed))

    def latency_ms(self, placed: Placed, widths: Sequence[int]) -> float:
        """The layer at other widths: linear between the rungs, after rounding up to the step; widths off the step pay
        their penalty."""
        ends, dearer = [], 1.0
        for i, (rungs, width) in enumerate(zip(self.rungs(placed), widths, strict=True)):
            step = self.steps.get((placed.layer.kind, i), 1)
            full = min(rungs[-1], max(rungs[0], math.ceil(width / step) * step))
            dearer *= self._penalty(placed.layer.kind, i, width) / self._penalty(placed.layer.kind, i, full)
            ends.append(_between(rungs, full))
        ms = 0.0
        for corner in itertools.product(*ends):
            share = math.prod(part for _, part in corner)
            if share:
                ms += share * self.points[replace(placed.layer, widths=tuple(width for width, _ in corner))]
        return ms * dearer

    def _penalty(self, kind: str, axis: int, width: int) -> float:
        return self.penalties.get((kind, axis), {}).get(width & -width, 1.0)

    def predict(self, coupling: Coupling, keep: np.ndarray) -> float:
        """``model_latency`` for one question; who asks often keeps the ModelLatency."""
        return model_latency(self, coupling).ms(keep)


@dataclass(frozen=True, slots=True)
class ModelLatency:
    """What a table says of one model: ``factor`` times the sum of its layers, and ``rest_ms`` for what lies between
    them, which depends on their widths far less than they do."""

    table: LatencyTable
    meter: Meter
    placed: tuple[Placed, ...]
    ms_per_mac: float
    """Of the layers in the table, on average: what layers that are not in it are taken to cost."""
    factor: float = 1.0
    rest_ms: float = 0.0

    def ms(self, keep: np.ndarray | None = None) -> float:
        return self.rest_ms + sum(self.layers_ms(keep).values())

    def layers_ms(self, keep: np.ndarray | None) -> dict[fx.Node, float]:
        """Each layer's part of ``ms``."""
        batch = self.table.setting.batch
        now = at_widths(self.meter, keep, batch=batch)
        found = {node: macs * batch * self.ms_per_mac for node, macs in self.meter.by_layer(keep).items()}
        for placed in self.placed:
            layer = now[placed.node]
            found[placed.node] = self.table.latency_ms(placed, layer.widths) * layer.count / placed.layer.count
        return {node: ms * self.factor for node, ms in found.items()}

    def anchored(self, dense_ms: float) -> ModelLatency:
        """With the measured latency of the dense model: what its layers do not account for is the rest."""
        layers = sum(self.layers_ms(None).values())
        factor = self.factor * min(1.0, dense_ms / layers)
        return replace(self, factor=factor, rest_ms=max(0.0, dense_ms - layers))

    def corrected(self, points: Sequence[Point], wanted_ms: float) -> ModelLatency:
        """Right at the two of these measured plans between which ``wanted_ms`` lies, or at the last and the next above:
        the line through both, over the sum of the layers. Where that would fall with more work, the factor alone is
        changed, for the last. Plans that keep ending on one side bend the line towards it (Illinois algorithm)."""
        alone = replace(self, factor=1.0, rest_ms=0.0)
        sums = [(ms, alone.ms(keep)) for ms, keep in points]
        least, here = max((p for p in sums if p[0] <= wanted_ms), default=sums[-1])
        most, full = min((p for p in sums if p[0] > max(wanted_ms, least) and p[1] > here), default=(least, here))
        if most <= least:
            rest = min(max(self.rest_ms, 0.0), 0.9 * least)
            return replace(self, factor=(least - rest) / here, rest_ms=rest)
        sides = [ms > wanted_ms for ms, _ in sums]
        again = len(list(itertools.takewhile(lambda side: side == sides[-1], reversed(sides)))) - 1
        if least <= wanted_ms and sides[-1]:
            least = wanted_ms - (wanted_ms - least) / 2**again
        elif least <= wanted_ms:
            most = wanted_ms + (most - wanted_ms) / 2**again
        factor = (most - least) / (full - here)
        return replace(self, factor=factor, rest_ms=least - factor * here)


Point = tuple[float, np.ndarray | None]
"""ms that were measured of a plan, by the channels it keeps; None: all."""


def model_latency(table: LatencyTable, coupling: Coupling) -> ModelLatency:
    """Raises InputError where the table knows no layer of the model."""
    batch = table.setting.batch
    placed = tuple(p for p in layers_of(coupling, batch=batch) if table.covers(p))
    if not placed:
        raise InputError("no layer of this model was measured here yet. Run slim-model profile IN first.")
    meter = Meter(coupling)
    macs = meter.by_layer()
    spent = sum(table.latency_ms(p, p.layer.widths) for p in placed if p.node in macs)
    return ModelLatency(table, meter, placed, spent / max(1, batch * sum(macs.get(p.node, 0) for p in placed)))


def ladder(width: int, step: int, parts: Sequence[float]) -> tuple[int, ...]:
    """Multiples of ``step`` near these parts of ``width``, and it itself: ``(100, 16, (.25, .5)) -> 32, 48, 100``."""
    return tuple(sorted({min(width, max(step, round(width * part / step) * step)) for part in parts} | {width}))


def _between(rungs: Sequence[int], width: int) -> tuple[tuple[int, float], ...]:
    """The rungs on both sides and their shares: ``((16, 32), 20) -> (16, 0.75), (32, 0.25)``."""
    above = next(i for i, rung in enumerate(rungs) if rung >= width)
    if rungs[above] == width:
        return ((width, 1.0),)
    low, high = rungs[above - 1], rungs[above]
    part = (width - low) / (high - low)
    return (low, 1 - part), (high, part)


# -- the width step -------------------------------------------------------------------------------------------------


def make_table(setting: Setting, points: Mapping[Layer, float]) -> LatencyTable:
    """Steps and penalties follow from the points."""
    steps, penalties = {}, {}
    for kind, axes in PROBES.items():
        for axis, probe in axes.items():
            taken = {layer.widths[axis]: points[layer] for layer in probed(probe, axis) if layer in points}
            if len(taken) == len(PROBED):
                steps[kind, axis] = learned_step(taken)
                penalties[kind, axis] = _penalties(taken, steps[kind, axis])
    return LatencyTable(setting, points, steps, penalties)


def probed(probe: Layer, axis: int) -> list[Layer]:
    return [replace(probe, widths=(*probe.widths[:axis], width, *probe.widths[axis + 1 :])) for width in PROBED]


def learned_step(taken: Mapping[int, float]) -> int:
    """The widest step for which rounding a width up costs (next to) nothing: ``{5: 8.0, 6: 8.0, 8: 8.1, ...} -> 8``.

    A width costs at most what a wider one does, since zeros could be added: dearer widths, for which the runtime has
    no good kernel, are taken at that. How dear rounding up is: the sum of log(time) it adds over the sum of
    log(width) it adds, next to the same from the narrowest to the widest width. A smooth runtime has 1, a staircase
    of that step 0.
    """
    least = {width: min(ms for wider, ms in taken.items() if wider >= width) for width in taken}
    narrow, wide = min(taken), max(taken)
    slope = math.log(least[wide] / least[narrow]) / math.log(wide / narrow)
    for step in CANDIDATES:
        pairs = [(w, up) for w in taken if (up := math.ceil(w / step) * step) != w and up in taken]
        cost = sum(math.log(least[up] / least[w]) for w, up in pairs)
        if slope > FLAT and pairs and cost / sum(math.log(up / w) for w, up in pairs) <= FLAT * slope:
            return step
    return 1


def _penalties(taken: Mapping[int, float], step: int) -> dict[int, float]:
    """For each power of two below the step: time at widths it divides (and no larger one) over that rounded up."""
    ratios: dict[int, list[float]] = {}
    for width in taken:
        full = math.ceil(width / step) * step
        if full != width and full in taken:
            ratios.setdefault(width & -width, []).append(taken[width] / taken[full])
    return {divisor: statistics.median(each) for divisor, each in ratios.items()}


# -- on disk --------------------------------------------------------------------------------------------------------


def setting_of(row: Runtime, *, threads: int = 1, dtype: str = "float32", batch: int = 1) -> Setting:
    """The setting of this machine. The processor is told by its name and the instructions it has."""
    if row.device == "cuda":
        machine = environment()["devices"][0]
    else:
        flags = hashlib.sha256(" ".join(cpu_flags()).encode()).hexdigest()[:12]
        machine = f"{environment()['cpu']}, {flags}"
    return Setting(machine, row.name, version_of(*row.packages) or "", threads, dtype, batch)


def cache_folder() -> Path:
    """Where tables lie unless the user says otherwise: in the folder for caches of this system."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        root = Path(named)
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif platform.system() == "Windows":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        root = Path.home() / ".cache"
    return root / "slim-model" / "latency"


def table_path(setting: Setting, cache: Path | None = None) -> Path:
    told = json.dumps(asdict(setting) | {"measured_as": _MEASURED_AS}, sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return (cache or cache_folder()) / f"{setting.runtime}-{digest}.jsonl"


def read_table(setting: Setting, cache: Path | None = None) -> LatencyTable:
    """What was measured so far; nothing yet where there is no file."""
    return make_table(setting, dict(_read(table_path(setting, cache))))


def _read(path: Path) -> Iterable[tuple[Layer, float]]:
    """The last line may be cut off, where the process was killed."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "kind" in row:
            shape = tuple(tuple(part) for part in row["fixed"])
            yield Layer(row["kind"], row["count"], shape, tuple(row["widths"])), row["ms"]


def append(setting: Setting, rows: Sequence[tuple[Layer, dict[str, Any]]], cache: Path | None = None) -> None:
    """Add measured layers; a line that was cut off is ended first."""
    path = table_path(setting, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.read_bytes() if path.exists() else b""
    with path.open("a") as file:
        file.write(json.dumps({"setting": asdict(setting)}) + "\n" if not held else "" if held[-1:] == b"\n" else "\n")
        for layer, numbers in rows:
            file.write(json.dumps(asdict(layer) | numbers) + "\n")


def measured_step(device: str, cache: Path | None = None) -> int | None:
    """The width step of onnxruntime on this device with one thread, where it was learned on this machine."""
    row = RUNTIMES["onnxruntime" if device == "cpu" else "onnxruntime-cuda"]
    if device != "cpu" and not torch.cuda.is_available():
        return None
    table = read_table(setting_of(row), cache)
    return table.width_step() if table.steps else None
