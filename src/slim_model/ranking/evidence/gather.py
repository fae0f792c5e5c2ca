"""A graph and data -> what the data says of every channel, gathered in one streaming pass.

Tensors are observed where the layers that read a channel take it in, after activation, pooling and flattening
(``read_sites``). Gradients are those of gates: imagine each channel multiplied by a gate that stands at 1, in all
read sites; with ``x`` read and ``g`` the gradient of a sample's loss there, the gate's is ``t = sum g x``.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from slim_model import distributed
from slim_model.coupling.coupling import Coupling
from slim_model.data.batches import Batch, Data, pad_batch
from slim_model.data.loss import Loss
from slim_model.errors import InputError
from slim_model.graph.decisions import Decided
from slim_model.graph.graph import source_line
from slim_model.graph.tensor_trees import batch_of, not_finite, tensors_among
from slim_model.progress import Count, count_nothing
from slim_model.ranking.evidence.gate_gradients import (
    GateCurvature,
    GateGradients,
    draw_directions,
    gate_curvature,
    gate_gradients,
)
from slim_model.ranking.evidence.patches import patch
from slim_model.ranking.evidence.read_sites import ReadSite, by_sample, find_read_sites
from slim_model.ranking.evidence.sampling import SUMMED, Sampling
from slim_model.ranking.evidence.seen import Seen
from slim_model.ranking.evidence.statistics import STATISTICS

GRADIENTS = ("gates", "curvature")
"""Statistics of a group as a whole, which need a loss."""
_LABELLED = ("classes",)


@dataclass(frozen=True, slots=True)
class View:
    """A group's channels at one read site: ``channel (k,)`` by number, ``weights (k, rest)`` of each layer that reads
    them there, ``statistics`` by name, their rows in the order of ``channel``."""

    where: str
    channel: Tensor
    weights: tuple[Tensor, ...]
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class GroupEvidence:
    """All that is known of one group from data; its channels may have several read sites, or none."""

    views: tuple[View, ...] = ()
    gates: GateGradients | None = None
    curvature: GateCurvature | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """``groups`` in the order of the coupling; ``samples`` were read."""

    groups: tuple[GroupEvidence, ...]
    samples: int

    def merge(self, other: Evidence) -> Evidence:
        """What two parts of the data say together."""
        groups = tuple(_merged(a, b) for a, b in zip(self.groups, other.groups, strict=True))
        return Evidence(groups, self.samples + other.samples)


def _merged(a: GroupEvidence, b: GroupEvidence) -> GroupEvidence:
    views = []
    for one, two in zip(a.views, b.views, strict=True):
        statistics = {name: s.merge(two.statistics[name]) for name, s in one.statistics.items()}
        views.append(dataclasses.replace(one, statistics=statistics))
    gates = a.gates.merge(b.gates) if a.gates and b.gates else None
    curvature = a.curvature.merge(b.curvature) if a.curvature and b.curvature else None
    return GroupEvidence(tuple(views), gates, curvature)


def gather(
    coupling: Coupling,
    data: Data,
    statistics: tuple[str, ...],
    *,
    loss: Loss | None = None,
    seed: int = 0,
    first: int = 0,
    positions: int = SUMMED,
    count: Count = count_nothing,
) -> Evidence:
    """Gather ``statistics`` of all groups in one pass over ``data``.

    Of several processes each reads its share of the batches, and all get the sum. ``first`` numbers the first sample;
    ``positions``: of a layer's output that contributions and correlations are taken at, in each sample.
    """
    if any(name in _LABELLED for name in statistics) and not data.labelled:
        raise InputError(f"{data.name} has no labels. Give batches of (inputs, labels).")
    observer = _Observer(coupling, statistics, loss, seed, positions)
    evidence: Evidence | None = None
    done = 0
    for number, batch in enumerate(data.batches()):
        # Batches are dealt out in turn; each still counts all, so that samples have one number everywhere.
        if number % distributed.world_size() == distributed.rank():
            here = observer.look(batch, first + done)
            evidence = here if evidence is None else evidence.merge(here)
        done += batch.samples
        count(done, data.samples)
    evidence = distributed.merge_ranks(evidence, Evidence.merge)
    if evidence is None:
        raise InputError(f"{data.name} is empty: it gave no batch.")
    return evidence


class _Observer:
    """What stays the same from batch to batch."""

    def __init__(
        self, coupling: Coupling, statistics: tuple[str, ...], loss: Loss | None, seed: int, positions: int
    ) -> None:
        self.coupling, self.loss, self.positions = coupling, loss, positions
        self.names = tuple(name for name in statistics if name not in GRADIENTS)
        self.gates, self.curvature = (name in statistics for name in GRADIENTS)
        self.sites = find_read_sites(coupling)
        self.directions = draw_directions(coupling, seed) if self.curvature else torch.empty(0)
        if self.names:
            self._refuse_without_data()

    def _refuse_without_data(self) -> None:
        reached = {p.group for p in self.sites if p.read.layout.axis is not None}
        alone = {p.group for p in self.sites} - reached
        if alone:
            name = self.coupling.groups[min(alone)].name
            raise InputError(
                f"the channels of '{name}' are read where no data flows (the model computes them from its weights "
                f"alone), so data cannot rank them. Use a criterion of weights, or leave them: --keep '{name}*'."
            )

    def look(self, batch: Batch, first: int) -> Evidence:
        batch = pad_batch(batch, self.coupling.graph)
        views: list[dict[str, Any]] = [{} for _ in self.sites]
        if self.names:
            self._watch(batch, first, views)
        gates: dict[int, GateGradients] = {}
        curvature: dict[int, GateCurvature] = {}
        if self.gates:
            gates = gate_gradients(self.coupling, self.sites, batch, self.loss)
        if self.curvature:
            curvature = gate_curvature(self.coupling, self.sites, batch, self.loss, self.directions)
        by_group: dict[int, list[View]] = defaultdict(list)
        for site, statistics in zip(self.sites, views, strict=True):
            where = source_line(site.readers[0])
            by_group[site.group].append(View(where, site.channel, site.weights, statistics))
        groups = (
            GroupEvidence(tuple(by_group[g]), gates.get(g), curvature.get(g)) for g in range(len(self.coupling.groups))
        )
        return Evidence(tuple(groups), batch.samples)

    def _watch(self, batch: Batch, first: int, views: list[dict[str, Any]]) -> None:
        """One run; whatever is not finite is found, be it that a statistic fails on it."""
        outputs: list[Tensor] = []
        try:
            with torch.no_grad():
                outputs = tensors_among(
                    _ObservedRun(self, batch, first, views).run(initial_env=self.coupling.graph.bind(batch.inputs))
                )
        except RuntimeError:
            if _where_not_finite(self.coupling, batch) is None:
                raise
            outputs = [torch.tensor(torch.nan)]
        if any(map(not_finite, (*batch.inputs, *outputs))):
            raise InputError(
                f"{_where_not_finite(self.coupling, batch) or 'the outputs are'} NaN or infinite on the data, in "
                f"samples {first} to {first + batch.samples - 1}. Remove such samples, or check the weights."
            )


class _ObservedRun(Decided):
    """One run of the graph on one batch; ``views`` fills with the statistics of each site."""

    def __init__(self, observer: _Observer, batch: Batch, first: int, views: list[dict[str, Any]]) -> None:
        graph = observer.coupling.graph
        super().__init__(graph.module, graph.decisions, garbage_collect_values=True)
        self.observer, self.batch, self.first, self.views = observer, batch, first, views
        self.rows = batch_of(batch.inputs)
        self.kept_values: dict[fx.Node, Any] = {}
        self.due: dict[fx.Node, list[int]] = defaultdict(list)
        self.kept_nodes: set[fx.Node] = set()
        for number, site in enumerate(observer.sites):
            self.due[site.readers[0]].append(number)
            self.kept_nodes |= {s.node for s in (site.seen, site.before) if s is not None and s is not site.read}

    def run_node(self, n: fx.Node) -> Any:
        for number in self.due.get(n, ()):
            self._observe(number, self.observer.sites[number])
        result = super().run_node(n)
        if n in self.kept_nodes:  # the same memory as what is read, or the value ahead of its activation
            self.kept_values[n] = result
        return result

    def _observe(self, number: int, site: ReadSite) -> None:
        whole = self._values(site.seen)
        grid = (whole.shape[-2], whole.shape[-1]) if whole.dim() >= 5 else (1, whole[0, 0].numel())
        before = self._values(site.before).flatten(2) if site.before else None
        labels = None if self.batch.labels is None else self.batch.labels[: self.batch.samples]
        values = whole.flatten(2)
        seen = Seen(values, grid, before, labels, self.first, lambda: self._patches(site))
        for name in self.observer.names:
            self.views[number][name] = STATISTICS[name].of(seen)

    def _values(self, positions: Any) -> Tensor:
        tensor = self.kept_values[positions.node] if positions.node in self.kept_values else self.env[positions.node]
        by_channel = by_sample(tensor.detach(), positions, self.rows)
        return by_channel.expand(self.rows, *by_channel.shape[1:])[: self.batch.samples]

    def _patches(self, site: ReadSite) -> Any:
        readers = [n for n in site.readers if all(m in self.env for m in n.all_input_nodes)]
        sampling = Sampling(self.first, self.rows, self.observer.positions)
        return tuple(patch(n, site.read, self.env, sampling) for n in readers)


def _where_not_finite(coupling: Coupling, batch: Batch) -> str | None:
    """The first values on the way that are NaN or infinite."""
    if any(not_finite(x) for x in batch.inputs):
        return "the inputs are"

    class Search(Decided):
        where: str | None = None

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and self.where is None and any(map(not_finite, tensors_among(result))):
                self.where = f"the values of {n.target} ({source_line(n)}) are"
            return result

    search = Search(coupling.graph.module, coupling.graph.decisions)
    with torch.no_grad():
        search.run(initial_env=coupling.graph.bind(batch.inputs))
    return search.where
