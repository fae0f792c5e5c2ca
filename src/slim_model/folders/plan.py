"""A checkpoint and a ratio -> how many of what every layer keeps, and what config.json then says.

Shapes alone are asked, no values: the plan of a model that no memory could hold takes a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slim_model.errors import BudgetError, InputError
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.reading.families import Cut, Family
from slim_model.folders.widths.hidden import Hidden, hidden_of, shared_widths
from slim_model.folders.widths.sites import Site, heads_of, in_words, sites_of, whole_number

STEP = 8
"""Widths are rounded to it where none is asked for: what vector units and matrix units of today take at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``kept``: how many units stay of how many in every layer, by the name of the cut; cuts of which none goes are
    left out. ``config``: as it is to be written; ``notes``: for the user; ``hidden``: the hidden channels, where they
    go."""

    checkpoint: Checkpoint
    sites: tuple[Site, ...]
    kept: Mapping[str, tuple[int, int]]
    config: Mapping[str, Any]
    notes: tuple[str, ...]
    hidden: Hidden | None = None

    @property
    def parts(self) -> tuple[Site | Hidden, ...]:
        """All that loses units."""
        return (*self.sites, *((self.hidden,) if self.hidden else ()))

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of what is written, by name."""
        shapes = {name: list(stored.shape) for name, stored in self.checkpoint.tensors.items()}
        for part in self.parts:
            count = self.kept[part.name][0]
            for axis in part.axes:
                shapes[axis.tensor][axis.axis] = count * sum(axis.spans)
        return shapes

    @property
    def parameters(self) -> int:
        """How many numbers stay."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes.values())


def plan_folder(checkpoint: Checkpoint, ratio: float, step: int | None = None, *, residual: bool = False) -> Plan:
    """Remove the fraction ``ratio`` of each width, the same in every layer; with ``residual`` of the layers' weights,
    by fewer hidden channels and fewer MLP channels. ``step``: channels are rounded to it; None: to ``STEP``, or what
    there is of it. Raises BudgetError where nothing would be left, or nothing can go."""
    check_widths(checkpoint.path, checkpoint.config, checkpoint.family)
    sites = list(sites_of(checkpoint))
    for cut in checkpoint.family.cuts:
        _check_said(checkpoint, [site for site in sites if site.cut == cut])
    hidden = hidden_of(checkpoint, sites) if residual else None
    wanted = _wanted(checkpoint, sites, hidden, ratio, step)
    kept: dict[str, tuple[int, int]] = {}
    config, notes = dict(checkpoint.config), list[str]()
    config.pop("auto_map", None)  # code is not copied
    for cut in checkpoint.family.cuts:
        mine = [site for site in sites if site.cut == cut]
        if not mine:
            continue  # a class that has one part alone
        units, count = mine[0].units, wanted[cut.name]
        if count == units:
            notes.append(f"{in_words(cut.name)} are kept: {_why(checkpoint, cut, units, ratio, hidden)}")
            continue
        kept[cut.name] = (count, units)
        config |= _said(config, checkpoint, mine[0], count)
    if hidden and wanted[hidden.name] < hidden.units:
        kept[hidden.name] = (wanted[hidden.name], hidden.units)
        config |= {"hidden_size": wanted[hidden.name], "head_dim": heads_of(checkpoint)[2]}
    elif hidden:
        notes.append(f"hidden channels are kept: {hidden.units} cannot lose so few{_multiple(checkpoint)}")
    if checkpoint.family.unsaid:
        notes.append(f"heads are kept: {checkpoint.family.unsaid}")
    if not kept and not checkpoint.gone:
        raise BudgetError(f"nothing can go at ratio {ratio:g}: {'; '.join(notes)}. Give a larger --ratio.")
    cut_sites = tuple(site for site in sites if site.name in kept)
    return Plan(checkpoint, cut_sites, kept, config, tuple(notes), hidden if hidden and hidden.name in kept else None)


def _wanted(
    checkpoint: Checkpoint, sites: list[Site], hidden: Hidden | None, ratio: float, step: int | None
) -> dict[str, int]:
    """How many units stay, by the name of the cut."""
    firsts = {site.name: site for site in reversed(sites)}
    if hidden:
        steps = (step or _step_of(units) for units in (hidden.units, firsts["mlp"].units))
        widths = dict(zip((hidden.name, "mlp"), shared_widths(checkpoint, sites, ratio, *steps), strict=True))
        return {name: site.units for name, site in firsts.items()} | widths
    return {
        name: _rounded(site.units, ratio, step or _step_of(site.units))
        if site.cut.kind == "mlp"
        else _groups(checkpoint, site, ratio)
        for name, site in firsts.items()
    }


def check_widths(path: Path, config: Mapping[str, Any], family: Family) -> None:
    """Raise InputError where the configuration can say no width at all."""
    if not family.cuts:
        raise InputError(
            f"{path}: no smaller {config['model_type']} can be written as a folder, since {family.unsaid}. "
            f"{family.instead}."
        )


def _why(checkpoint: Checkpoint, cut: Cut, units: int, ratio: float, hidden: Hidden | None) -> str:
    if hidden:
        return "hidden channels go in their place" if cut.kind == "heads" else "hidden channels make up the ratio"
    asked = f"{units} cannot lose {ratio:.0%}"
    return asked + (f", since {_DIVIDES}" if cut.kind == "heads" and checkpoint.family.whole_multiple else "")


def _multiple(checkpoint: Checkpoint) -> str:
    return f", since {_DIVIDES}" if checkpoint.family.whole_multiple else ""


_DIVIDES = "the number of heads must divide hidden_size in this model's configuration"


# -- how many stay --------------------------------------------------------------------------------------------------


def _check_said(checkpoint: Checkpoint, sites: list[Site]) -> None:
    """Raise InputError where the weights have another depth, or a layer another width, than config.json says."""
    if not sites:
        return
    cut, config = sites[0].cut, part_of(checkpoint.config, sites[0].cut.within)
    depth, key = config.get(cut.depth or checkpoint.family.depth), cut.keys[-1]
    width = heads_of(checkpoint)[1] if cut.kind == "heads" else config.get(key)
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
    heads, groups, _ = heads_of(checkpoint)
    wanted = groups * (1 - ratio)
    if round(wanted) < 1 and groups > 1:
        raise BudgetError(
            f"ratio {ratio:g} would leave none of the {groups} key-value groups of a layer. Give a smaller --ratio: up "
            f"to {1 - 0.5 / groups:.2g}."
        )
    hidden, queries = whole_number(checkpoint, "hidden_size"), heads // groups
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
    heads, groups, width = heads_of(checkpoint)
    return dict(zip(site.cut.keys, (count * heads // groups, count), strict=True)) | {"head_dim": width}
