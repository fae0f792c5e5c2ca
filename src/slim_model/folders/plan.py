"""A checkpoint and a ratio -> how many of what every layer keeps, and what config.json then says.

Shapes alone are asked, no values: the plan of a model that no memory could hold takes a moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slim_model.errors import BudgetError, InputError
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.reading.families import Cut, Family

STEP = 8
"""Widths are rounded to it where none is asked for: what vector units and matrix units of today take at once."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the units of a cut lie along one axis of a tensor: parts side by side, in each ``spans`` positions for
    each unit."""

    tensor: str
    axis: int
    spans: tuple[int, ...]

    def positions(self, kept: Tensor, units: int) -> Tensor:
        """Of the units ``kept``, of so many ``units`` in all. Two of four units with spans (1, 1): ``[0, 1, 4, 5]``."""
        found, start = [], 0
        for span in self.spans:
            found.append((start + kept[:, None] * span + torch.arange(span)).flatten())
            start += units * span
        return torch.cat(found)


@dataclass(frozen=True, slots=True)
class Site:
    """One cut in one layer, ``where`` in the names of tensors: ``units`` channels or groups. ``holds``: the biases of
    the layers that make them; ``bias``: of the layer that reads them, None where it has none."""

    cut: Cut
    where: str
    layer: int
    units: int
    makes: tuple[Axis, ...]
    holds: tuple[Axis, ...]
    reads: Axis
    bias: str | None

    @property
    def columns(self) -> int:
        """Inputs of the reading layer for each unit."""
        return self.reads.spans[0]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All that gets shorter."""
        return (*self.makes, *self.holds, self.reads)


@dataclass(frozen=True, slots=True)
class Plan:
    """``kept``: how many units stay of how many in every layer, by the name of the cut; cuts of which none goes are
    left out. ``config``: as it is to be written; ``notes``: for the user."""

    checkpoint: Checkpoint
    sites: tuple[Site, ...]
    kept: Mapping[str, tuple[int, int]]
    config: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of what is written, by name."""
        shapes = {name: list(stored.shape) for name, stored in self.checkpoint.tensors.items()}
        for site in self.sites:
            count = self.kept[site.cut.name][0]
            for axis in site.axes:
                shapes[axis.tensor][axis.axis] = count * sum(axis.spans)
        return shapes

    @property
    def parameters(self) -> int:
        """How many numbers stay."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes.values())


def plan_folder(checkpoint: Checkpoint, ratio: float, step: int | None = None) -> Plan:
    """Remove the fraction ``ratio`` of each width, the same in every layer. ``step``: channels are rounded to it; None:
    to ``STEP``, or what there is of it. Raises BudgetError where nothing would be left, or nothing can go."""
    check_widths(checkpoint.path, checkpoint.config, checkpoint.family)
    sites = list(_sites(checkpoint))
    kept: dict[str, tuple[int, int]] = {}
    config, notes = dict(checkpoint.config), list[str]()
    config.pop("auto_map", None)  # code is not copied
    for cut in checkpoint.family.cuts:
        mine = [site for site in sites if site.cut == cut]
        if not mine:
            continue  # a class that has one part alone
        units = mine[0].units
        _check_said(checkpoint, mine)
        if cut.kind == "mlp":
            count = _rounded(units, ratio, step or _step_of(units))
        else:
            count = _groups(checkpoint, mine[0], ratio)
        if count == units:
            notes.append(f"{in_words(cut.name)} are kept: {units} cannot lose {ratio:.0%}{_why(checkpoint, cut)}")
            continue
        kept[cut.name] = (count, units)
        config |= _said(config, checkpoint, mine[0], count)
    if checkpoint.family.unsaid:
        notes.append(f"heads are kept: {checkpoint.family.unsaid}")
    if not kept and not checkpoint.gone:
        raise BudgetError(f"nothing can go at ratio {ratio:g}: {'; '.join(notes)}. Give a larger --ratio.")
    return Plan(checkpoint, tuple(s for s in sites if s.cut.name in kept), kept, config, tuple(notes))


def check_widths(path: Path, config: Mapping[str, Any], family: Family) -> None:
    """Raise InputError where the configuration can say no width at all."""
    if not family.cuts:
        raise InputError(
            f"{path}: no smaller {config['model_type']} can be written as a folder, since {family.unsaid}. "
            f"{family.instead}."
        )


_NAMES = {"mlp": "MLP channels", "heads": "key-value groups"}


def in_words(name: str) -> str:
    """A cut's name for the user: ``text mlp`` are the MLP channels of the text part."""
    part, _, kind = name.rpartition(" ")
    return f"{_NAMES[kind]} of the {part} part" if part else _NAMES[kind]


def _why(checkpoint: Checkpoint, cut: Cut) -> str:
    if cut.kind == "heads" and checkpoint.family.whole_multiple:
        return ", since the number of heads must divide hidden_size in this model's configuration"
    return ""


# -- which tensors hold the units of a cut --------------------------------------------------------------------------


def _sites(checkpoint: Checkpoint) -> Iterator[Site]:
    found = {cut: _layers_of(checkpoint, cut) for cut in checkpoint.family.cuts}
    for cut, layers in found.items():
        # A class may have one of a model's parts alone.
        if not layers and not (cut.part and any(found.values())):
            raise InputError(
                f"{checkpoint.path} has no {cut.layers}.0.{cut.reads}.weight, which a model of type "
                f"{checkpoint.config['model_type']} has. The weights do not belong to config.json."
            )
        for layer, where in layers:
            yield _site(checkpoint, cut, where, layer)


def _layers_of(checkpoint: Checkpoint, cut: Cut) -> list[tuple[int, str]]:
    """Number of each layer, and what stands ahead of its names."""
    form = re.compile(rf"((?:^|.*\.){re.escape(cut.layers)}\.(\d+)\.){re.escape(cut.reads)}\.weight")
    return sorted((int(match[2]), match[1]) for name in checkpoint.tensors if (match := form.fullmatch(name)))


def _site(checkpoint: Checkpoint, cut: Cut, where: str, layer: int) -> Site:
    output = 1 if checkpoint.family.transposed else 0
    reads = f"{where}{cut.reads}.weight"
    spans = _spans(checkpoint, cut)
    column = spans["c" if cut.kind == "mlp" else "q"]
    units, rest = divmod(_size(checkpoint, reads, 1 - output), column)
    makes, holds = [], []
    for name, parts in cut.makes:
        weight, bias = f"{where}{name}.weight", f"{where}{name}.bias"
        own = tuple(spans[part] for part in parts)
        # Shapes must bear out what config.json says, or the wrong rows would be cut.
        if rest or _size(checkpoint, weight, output) != units * sum(own):
            raise InputError(
                f"{checkpoint.path}: {weight} has {_size(checkpoint, weight, output)} outputs, where config.json and "
                f"{reads} ask for {units * sum(own)}. The weights do not belong to config.json."
            )
        makes.append(Axis(weight, output, own))
        if bias in checkpoint.tensors:
            holds.append(Axis(bias, 0, own))
    bias = f"{where}{cut.reads}.bias"
    reader = Axis(reads, 1 - output, (column,))
    kept_bias = bias if bias in checkpoint.tensors else None
    return Site(cut, where, layer, units, tuple(makes), tuple(holds), reader, kept_bias)


def _size(checkpoint: Checkpoint, name: str, axis: int) -> int:
    if name not in checkpoint.tensors or len(checkpoint.tensors[name].shape) != 2:
        raise InputError(f"{checkpoint.path} has no matrix {name}. The weights do not belong to config.json.")
    return checkpoint.tensors[name].shape[axis]


def _spans(checkpoint: Checkpoint, cut: Cut) -> dict[str, int]:
    """Positions a unit has in a part: of queries those of a whole group."""
    if cut.kind == "mlp":
        return {"c": 1}
    heads, groups, width = _heads_of(checkpoint)
    return {"q": heads // groups * width, "k": width, "v": width}


def _heads_of(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Heads of queries, groups of keys and values, width of a head."""
    heads, hidden = (_whole(checkpoint, key) for key in ("num_attention_heads", "hidden_size"))
    groups = _whole(checkpoint, "num_key_value_heads", default=heads)
    width = _whole(checkpoint, "head_dim", default=checkpoint.family.head_width or hidden // heads)
    if heads % groups:
        raise InputError(f"{checkpoint.path}: {heads} heads of queries do not go into {groups} groups (config.json).")
    return heads, groups, width


def _whole(checkpoint: Checkpoint, key: str, default: int | None = None) -> int:
    value = checkpoint.config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{checkpoint.path / 'config.json'}: {key} is {value!r}, not a whole number from 1.")
    return value


# -- how many stay --------------------------------------------------------------------------------------------------


def _check_said(checkpoint: Checkpoint, sites: list[Site]) -> None:
    """Raise InputError where the weights have another depth, or a layer another width, than config.json says."""
    cut, config = sites[0].cut, part_of(checkpoint.config, sites[0].cut.within)
    depth, key = config.get(cut.depth or checkpoint.family.depth), cut.keys[-1]
    width = _heads_of(checkpoint)[1] if cut.kind == "heads" else config.get(key)
    if depth not in (None, len(sites)):
        raise InputError(
            f"{checkpoint.path} has weights of {len(sites)} layers, and config.json says {depth}. The weights do not "
            "belong to config.json."
        )
    for site in sites:
        if site.units != (sites[0].units if width is None else width):
            raise InputError(
                f"{checkpoint.path}: {site.reads.tensor} reads {site.units} {in_words(cut.name)}, and config.json "
                f"says {width or sites[0].units} ({key}). The weights do not belong to config.json."
            )


def _step_of(units: int) -> int:
    """The largest power of two up to STEP that the dense width is a multiple of."""
    return next(step for step in (STEP, 4, 2, 1) if units % step == 0)


def _rounded(units: int, ratio: float, step: int) -> int:
    """The multiple of ``step`` nearest to what is to stay, at least one step."""
    return min(units, max(step, round(units * (1 - ratio) / step) * step))


def _groups(checkpoint: Checkpoint, site: Site, ratio: float) -> int:
    """The number of groups that can be said, nearest to what is to stay; of two equally near the larger."""
    heads, groups, _ = _heads_of(checkpoint)
    wanted = groups * (1 - ratio)
    if round(wanted) < 1 and groups > 1:
        raise BudgetError(
            f"ratio {ratio:g} would leave none of the {groups} key-value groups of a layer. Give a smaller --ratio: up "
            f"to {1 - 0.5 / groups:.2g}."
        )
    hidden, queries = _whole(checkpoint, "hidden_size"), heads // groups
    can = [n for n in range(1, groups + 1) if not checkpoint.family.whole_multiple or hidden % (n * queries) == 0]
    return min([*can, groups], key=lambda n: (abs(n - wanted), -n))


def part_of(config: Mapping[str, Any], within: str) -> Mapping[str, Any]:
    """What the configuration says of one part; of CLIP old files do so under a second key, which goes ahead."""
    parts = [config.get(key) or {} for key in (within, f"{within}_dict")] if within else [config]
    if not all(isinstance(part, Mapping) for part in parts):
        raise InputError(f"config.json: {within} holds no names with values. Fetch it again.")
    return {key: value for part in parts for key, value in part.items()}


def _said(config: Mapping[str, Any], checkpoint: Checkpoint, site: Site, count: int) -> dict[str, Any]:
    """What ``config`` then says of ``count`` units."""
    if site.cut.within:
        places = [key for key in (site.cut.within, f"{site.cut.within}_dict") if config.get(key)]
        return {key: {**(config.get(key) or {}), site.cut.keys[0]: count} for key in places or [site.cut.within]}
    if site.cut.kind == "mlp":
        return {site.cut.keys[0]: count}
    heads, groups, width = _heads_of(checkpoint)
    return dict(zip(site.cut.keys, (count * heads // groups, count), strict=True)) | {"head_dim": width}
