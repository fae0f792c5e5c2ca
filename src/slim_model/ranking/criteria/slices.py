"""What a criterion sees of one group of channels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.coupling.coupling import Coupling, Group, Slice
from slim_model.data.loss import Losses
from slim_model.graph.nodes import arguments_of
from slim_model.graph.stored_tensors import as_used
from slim_model.labels.values import tensors_in
from slim_model.ops import kind_of
from slim_model.ranking.evidence.gather import GroupEvidence, View


class LazyTensors(Sequence[Tensor]):
    """A sequence of tensors, each cut out when it is first looked at: most criteria look at few."""

    def __init__(self, parts: list[Callable[[], Tensor]]) -> None:
        self._parts = [functools.cache(part) for part in parts]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: Any) -> Any:
        return [part() for part in self._parts[number]] if isinstance(number, slice) else self._parts[number]()


@dataclass(frozen=True, slots=True)
class Slices:
    """Everything a criterion may know of one group of ``width`` channels.

    ``makes``, ``reads``, ``holds``: tensors ``(channel, rest)``, float32: rows of the weights that make the channels,
    columns of those that read them, and per-channel values of norms and biases. Positions a channel does not have
    are zero. ``generator`` is seeded for the group. ``folded()``: ``makes`` times the scale of the BatchNorm behind
    each; ``scales()``: ``(channel, rest)`` scales of the group's BatchNorms. ``evidence``: what data says, where the
    criterion asked for it; ``losses(removed)``: the loss on the data for each row of a bool ``(trials, channel)``.
    """

    width: int
    makes: Sequence[Tensor]
    reads: Sequence[Tensor]
    holds: Sequence[Tensor]
    generator: torch.Generator
    name: str = ""
    folded: Callable[[], tuple[Tensor, ...]] = tuple
    scales: Callable[[], tuple[Tensor, ...]] = tuple
    evidence: GroupEvidence = field(default_factory=GroupEvidence)
    losses: Losses | None = None

    def over_read_sites(self, score: Callable[[View], Tensor], combine: str = "mean") -> Tensor:
        """``score`` of the channels at each read site, as one number each; 0 where none reads them.

        ``[[1, 3], [5, absent]]`` gives ``[3, 3]`` by mean, ``[5, 3]`` by max.
        """
        rows = torch.full((len(self.evidence.views) + 1, self.width), torch.nan, dtype=torch.float64)
        for row, view in zip(rows, self.evidence.views, strict=False):
            row[view.channel] = score(view).double().cpu()
        here = ~rows.isnan()
        if combine in ("mean", "sum"):
            total = rows.nan_to_num(0).sum(0)
            return total / here.sum(0).clamp(min=1) if combine == "mean" else total
        worst = -torch.inf if combine == "max" else torch.inf
        filled = torch.where(here, rows, worst)
        extreme = filled.amax(0) if combine == "max" else filled.amin(0)
        return torch.where(here.any(0), extreme, 0.0)


def slices_of(
    coupling: Coupling,
    group: Group,
    seed: int,
    evidence: GroupEvidence = GroupEvidence(),  # noqa: B008 (it is frozen)
    losses: Losses | None = None,
) -> Slices:
    """What the criterion sees of each group of ``coupling``, in the order of its groups."""
    rows: dict[str, list[Callable[[], Tensor]]] = {"makes": [], "reads": [], "holds": []}
    # Rows are built when a criterion asks for them: most read one role alone.
    for part in group.slices:
        if coupling.graph.tensors[part.parameter].is_floating_point():
            rows[part.role].append(functools.partial(_row, coupling, part, group.width))
    return Slices(
        group.width,
        LazyTensors(rows["makes"]),
        LazyTensors(rows["reads"]),
        LazyTensors(rows["holds"]),
        torch.Generator().manual_seed(seed),
        group.name,
        lambda: _folded(coupling, group),
        lambda: _scales(coupling, group),
        evidence,
        losses,
    )


def _row(coupling: Coupling, part: Slice, width: int) -> Tensor:
    tensor = as_used(coupling.graph, part.parameter)
    return _by_channel(tensor, part.axis, torch.from_numpy(part.channel), width)


def _by_channel(tensor: Tensor, axis: int, channel: Tensor, width: int) -> Tensor:
    """``(channel, rest)``; a channel with several positions has them side by side, missing ones are zero."""
    positions = torch.nonzero(channel >= 0).flatten()
    owner = channel[positions]
    order = torch.argsort(owner, stable=True)
    positions, owner = positions[order], owner[order]
    counts = torch.bincount(owner, minlength=width)
    rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    rows = tensor.detach().movedim(axis, 0).flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
    if bool((counts == 1).all()):
        if len(positions) == len(rows) and torch.equal(positions, torch.arange(len(rows))):
            return rows.float().cpu()
        return rows[positions].float().cpu()
    result = rows.new_zeros((width, int(counts.max()), rows.shape[1]), dtype=torch.float32)
    result[owner, rank] = rows[positions].float()
    return result.flatten(1).cpu()


# -- the BatchNorm behind a layer -----------------------------------------------------------------------------------


def _norms(coupling: Coupling) -> list[tuple[fx.Node, fx.Node]]:
    """(BatchNorm, what it normalises)"""
    nodes = [n for n in coupling.graph.nodes if kind_of(n) == "batch_norm"]
    return [(node, arguments_of(node)["input"]) for node in nodes]


def _constant(coupling: Coupling, node: fx.Node, name: str) -> Tensor | None:
    argument = arguments_of(node).get(name)
    value = coupling.labelled.constants.of(argument) if isinstance(argument, fx.Node) else None
    return None if value is None else value.detach()


def _folded(coupling: Coupling, group: Group) -> tuple[Tensor, ...]:
    """Rows that make the channels times ``|gamma| / sqrt(variance + eps)`` of the BatchNorm they go into."""
    names = {name: node for node, name in coupling.graph.owners.items()}
    norms = _norms(coupling)
    folded = []
    for part in group.slices:
        tensor = coupling.graph.tensors[part.parameter]
        if part.role != "makes" or not tensor.is_floating_point():
            continue
        scaled = as_used(coupling.graph, part.parameter).detach()
        for norm, layer in norms:
            if any(n.name == names.get(part.parameter) for n in layer.all_input_nodes):
                factor = _factor(coupling, norm)
                scaled = scaled * factor.view([-1 if a == part.axis else 1 for a in range(scaled.dim())])
                break
        folded.append(_by_channel(scaled, part.axis, torch.from_numpy(part.channel), group.width))
    return tuple(folded)


def _factor(coupling: Coupling, norm: fx.Node) -> Tensor:
    variance = _constant(coupling, norm, "running_var")
    gamma = _constant(coupling, norm, "weight")
    spread = torch.ones(()) if variance is None else (variance + arguments_of(norm)["eps"]).rsqrt()
    return (spread if gamma is None else gamma.abs() * spread).reshape(-1)


def _scales(coupling: Coupling, group: Group) -> tuple[Tensor, ...]:
    """Each BatchNorm's scale, by channel."""
    scales, index = [], coupling.index()
    mine = index.group[group.channels[0]]
    for norm, _ in _norms(coupling):
        gamma, values = arguments_of(norm)["weight"], tensors_in([coupling.labelled.values[norm]])
        labels = values[0].axes[1]  # a decomposed one gives its statistics, too
        if not isinstance(gamma, fx.Node) or labels is None:
            continue
        component = coupling.component[labels.numpy()]
        channel = torch.from_numpy(np.where(index.group[component] == mine, index.number[component], -1))
        tensor = coupling.labelled.constants.of(gamma)
        if tensor is not None and bool((channel >= 0).any()):
            rows = torch.full((group.width, 1), torch.nan)
            rows[channel[channel >= 0]] = tensor.detach().float().cpu()[channel >= 0][:, None]
            scales.append(rows)
    return tuple(scales)
