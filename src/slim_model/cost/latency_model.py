"""The latency of a whole model as a sum of its layers' latencies, fitted to what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import fx

from slim_model.cost.counted import CostModel, Operands, Product, by_macs
from slim_model.cost.latency_table import LatencyTable
from slim_model.cost.layer_models import Placed, layers_of, shape_of
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
    by_place: dict[tuple[fx.Node, bool], Placed] = field(init=False)
    """``placed`` by their node, and whether they are the product of factors there."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_place", {(placed.node, placed.whole): placed for placed in self.placed})

    def ms(self, keep: np.ndarray | None = None) -> float:
        return self.rest_ms + sum(self.layers_ms(keep).values())

    def layers_ms(self, keep: np.ndarray | None) -> dict[fx.Node, float]:
        """Each layer's part of ``ms``; a factored one is its factors where these are faster."""
        return {
            operands.node: self.layer_ms(operands) * self.factor
            for operands in self.meter.layers(keep)
            if operands.row.macs or (operands.node, operands.whole) in self.by_place
        }

    def layer_ms(self, operands: Operands) -> float:
        """Of one layer at some widths, by the table alone."""
        batch = self.table.setting.batch
        placed = self.by_place.get((operands.node, operands.whole))
        layer = shape_of(operands, self.meter, batch=batch)
        if placed is None or layer is None:
            return operands.macs // self.meter.batch * batch * self.ms_per_mac
        return self.table.latency_ms(placed, layer.widths) * layer.count / placed.layer.count

    def counted(self) -> ModelLatency:
        """The same, where multiply-adds alone say which layers stay factored: they are what is limited."""
        return replace(self, meter=self.meter.with_rule(by_macs))

    def pays(self, product: Product) -> bool:
        """Apart, the factors take fewer multiply-adds than the whole, and less time."""
        return by_macs(product) and sum(map(self.layer_ms, product.factors)) < self.layer_ms(product.whole)

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
    latency = ModelLatency(table, CostModel(coupling), placed, 0.0)
    dense = [
        layer for layer in latency.meter.layers() if layer.row.macs and (layer.node, layer.whole) in latency.by_place
    ]
    macs = batch * sum(layer.macs // latency.meter.batch for layer in dense)
    latency = replace(latency, ms_per_mac=sum(map(latency.layer_ms, dense)) / max(1, macs))
    return replace(latency, meter=latency.meter.with_rule(latency.pays))
