"""Measured latencies of single layers -> the latency of a model at any widths, and the width step.

``cost.measure_layers`` measures, ``cost.latency_store`` keeps it on disk; this file reads between the points.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slim_model.cost.layer_models import Placed
from slim_model.ops import LayerShape

RUNGS = {0: (1.0,), 1: tuple(n / 8 for n in range(1, 9)), 2: (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1), 3: (1 / 4, 1 / 2, 1)}
"""Parts of the dense width that are measured, by the number of widths that vary at once."""
CANDIDATES = (64, 32, 16, 8, 4, 2)
"""Width steps looked for, the widest first."""
PROBED = tuple(64 + n for n in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
"""Widths that tell the steps apart: one octave with all remainders that matter."""
FLAT = 0.25
"""A step is one if rounding up to it costs no more than this part of what so many more channels cost on average."""
NOTHING = LayerShape("nothing", 1, (), ())
_SQUARE = ((28, 28), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0,))
_POINT = ((28, 28), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), (0, 0), (0,))
PROBES: dict[str, dict[int, LayerShape]] = {
    "conv": {1: LayerShape("conv", 1, _SQUARE, (1, 64, 64)), 2: LayerShape("conv", 1, _SQUARE, (1, 64, 64))},
    "pointwise": {
        1: LayerShape("pointwise", 1, _POINT, (1, 128, 128)),
        2: LayerShape("pointwise", 1, _POINT, (1, 128, 128)),
    },
    "depthwise": {0: LayerShape("depthwise", 1, _SQUARE, (64, 1, 1))},
    "linear": {0: LayerShape("linear", 196, (), (256, 256)), 1: LayerShape("linear", 196, (), (256, 256))},
}
"""By kind and the width that is varied: the layer on which its step is learned."""
MEASURED_AS = 2
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
    measured_as: int = MEASURED_AS


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Measured latencies of single layers.

    ``points``: ms by layer, without the time of the call. ``steps``: the width step, by (kind, index of the width).
    ``penalties``: by the same and a power of two below the step, how much slower a width is that this power, and no
    larger one, divides.
    """

    setting: Setting
    points: Mapping[LayerShape, float]
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
            widths_to_measure(width, self.steps.get((kind, i), 1), parts) if free else (width,)
            for i, (width, free) in enumerate(zip(widths, placed.free, strict=True))
        ]

    def grid(self, placed: Placed) -> list[LayerShape]:
        """What must be measured to know the layer at all widths."""
        return [replace(placed.layer, widths=widths) for widths in itertools.product(*self.rungs(placed))]

    def covers(self, placed: Placed) -> bool:
        return all(layer in self.points for layer in self.grid(placed))

    def latency_ms(self, placed: Placed, widths: Sequence[int]) -> float:
        """The layer at other widths: linear between the rungs, after rounding up to the step; widths off the step pay
        their penalty."""
        if 0 in widths:  # nothing is left of it
            return 0.0
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


def widths_to_measure(width: int, step: int, parts: Sequence[float]) -> tuple[int, ...]:
    """Multiples of ``step`` near these shares of ``width``, and the width itself: ``(100, 16, (.25, .5)) -> 32, 48,
    100``."""
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


def make_table(setting: Setting, points: Mapping[LayerShape, float]) -> LatencyTable:
    """A latency table from measured points (ms by layer); the width steps and penalties follow from them."""
    steps, penalties = {}, {}
    for kind, axes in PROBES.items():
        for axis, probe in axes.items():
            taken = {layer.widths[axis]: points[layer] for layer in probe_layers(probe, axis) if layer in points}
            if len(taken) == len(PROBED):
                steps[kind, axis] = learned_step(taken)
                penalties[kind, axis] = _penalties(taken, steps[kind, axis])
    return LatencyTable(setting, points, steps, penalties)


def probe_layers(probe: LayerShape, axis: int) -> list[LayerShape]:
    """The layers whose times tell the width step along ``axis``: ``probe`` at each of the widths to try."""
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
