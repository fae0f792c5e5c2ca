"""The latency of a whole model as a sum of its layers' latencies, fitted to what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import fx

from slim_model.cost.counted import CostModel
from slim_model.cost.latency_table import LatencyTable
from slim_model.cost.layer_models import Placed, layers_at_widths, layers_of
from slim_model.coupling.coupling import Coupling
from slim_model.errors import InputError


@dataclass(frozen=True, slots=True)
class ModelLatency:
    """What a table says of one model: ``factor`` times the sum of its layers, and ``rest_ms`` for what lies between
    them, which depends on their widths far less than they do."""

    table: LatencyTable
    meter: CostModel
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
        now = layers_at_widths(self.meter, keep, batch=batch)
        ms_of = {node: macs * batch * self.ms_per_mac for node, macs in self.meter.by_layer(keep).items()}
        for placed in self.placed:
            layer = now[placed.node]
            ms_of[placed.node] = self.table.latency_ms(placed, layer.widths) * layer.count / placed.layer.count
        return {node: ms * self.factor for node, ms in ms_of.items()}

    def anchored(self, dense_ms: float) -> ModelLatency:
        """With the measured latency of the dense model: what its layers do not account for is the rest."""
        layers = sum(self.layers_ms(None).values())
        factor = self.factor * min(1.0, dense_ms / layers)
        return replace(self, factor=factor, rest_ms=max(0.0, dense_ms - layers))

    def corrected(self, points: Sequence[Point], wanted_ms: float) -> ModelLatency:
        """Refit ``ms = factor * sum of layers + rest`` through the two measured plans that bracket ``wanted_ms``
        (regula falsi, Illinois variant: plans that keep ending on one side move the line towards it). Without a
        bracket, or where latency would fall with more work, ``factor`` alone is rescaled to the last measurement."""
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
    """What ``table`` says of the latency of the coupled model. Layers that it does not cover count by their MACs.
    Raises InputError where it covers none."""
    batch = table.setting.batch
    placed = tuple(p for p in layers_of(coupling, batch=batch) if table.covers(p))
    if not placed:
        raise InputError("no layer of this model was measured here yet. Run slim-model profile IN first.")
    meter = CostModel(coupling)
    macs = meter.by_layer()
    spent = sum(table.latency_ms(p, p.layer.widths) for p in placed if p.node in macs)
    return ModelLatency(table, meter, placed, spent / max(1, batch * sum(macs.get(p.node, 0) for p in placed)))
