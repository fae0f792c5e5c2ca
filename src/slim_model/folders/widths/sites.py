"""A checkpoint and its row -> where the units of each cut lie: in which tensors, along which axis.

Names and shapes alone are asked, no values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.reading.families import Cut


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
    def name(self) -> str:
        """Of the cut."""
        return self.cut.name

    @property
    def columns(self) -> int:
        """Inputs of the reading layer for each unit."""
        return self.reads.spans[0]

    @property
    def readings(self) -> tuple[Axis, ...]:
        """Where they are read."""
        return (self.reads,)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All that gets shorter."""
        return (*self.makes, *self.holds, *self.readings)


_NAMES = {"mlp": "MLP channels", "heads": "key-value groups", "hidden": "hidden channels"}


def in_words(name: str) -> str:
    """A cut's name for the user: ``text mlp`` are the MLP channels of the text part."""
    part, _, kind = name.rpartition(" ")
    return f"{_NAMES[kind]} of the {part} part" if part else _NAMES[kind]


def where(name: str) -> str:
    """The same with the place: all but hidden channels are those of one layer."""
    return in_words(name) + ("" if name == "hidden" else " in each layer")


def sites_of(checkpoint: Checkpoint) -> Iterator[Site]:
    """Every site of every cut that the checkpoint has. Raises InputError where its weights are not as its row says."""
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
    heads, groups, width = heads_of(checkpoint)
    return {"q": heads // groups * width, "k": width, "v": width}


def heads_of(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Heads of queries, groups of keys and values, width of a head."""
    heads, hidden = (whole_number(checkpoint, key) for key in ("num_attention_heads", "hidden_size"))
    groups = whole_number(checkpoint, "num_key_value_heads", default=heads)
    width = whole_number(checkpoint, "head_dim", default=checkpoint.family.head_width or hidden // heads)
    if heads % groups:
        raise InputError(f"{checkpoint.path}: {heads} heads of queries do not go into {groups} groups (config.json).")
    return heads, groups, width


def whole_number(checkpoint: Checkpoint, key: str, default: int | None = None) -> int:
    """What config.json says of ``key``, else ``default``. Raises InputError where that is no whole number from 1."""
    value = checkpoint.config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{checkpoint.path / 'config.json'}: {key} is {value!r}, not a whole number from 1.")
    return value
