"""A checkpoint -> where its hidden channels lie, and how many of them and of the MLP channels share a ratio.

Names and shapes alone are asked, no values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slim_model.errors import InputError
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.reading.families import Stream
from slim_model.folders.widths.sites import Axis, Site, heads_of, whole_number


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the residual stream and the linear layers that read it, by the names of their weights."""

    weight: str
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hidden:
    """The channels of the residual stream, ``units`` of them: who ``makes`` them (embedding, layers that add to it),
    ``holds`` a number for each (norms, biases), and reads them behind a norm; the last norm stands last."""

    units: int
    makes: tuple[Axis, ...]
    holds: tuple[Axis, ...]
    norms: tuple[Norm, ...]
    name: str = "hidden"

    @property
    def readings(self) -> tuple[Axis, ...]:
        """Where they are read."""
        return tuple(Axis(reader, 1, (1,)) for norm in self.norms for reader in norm.readers)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All that gets shorter."""
        return (*self.makes, *self.holds, *self.readings)


def hidden_of(checkpoint: Checkpoint, sites: Sequence[Site]) -> Hidden:
    """The hidden channels of a checkpoint that has these ``sites``. Raises InputError where ``hidden_size`` must stay,
    or a tensor along it is not as config.json says."""
    row, units = _row(checkpoint), whole_number(checkpoint, "hidden_size")
    _check_head(checkpoint)
    first = sites[0]
    layers = list(dict.fromkeys(site.where for site in sites))
    base = first.where.removesuffix(f"{first.cut.layers}.{first.layer}.")
    embedding, last = f"{base}{row.embedding}.weight", f"{base}{row.last}.weight"
    norms = [
        Norm(f"{where}{name}.weight", tuple(f"{where}{reader}.weight" for reader in readers))
        for where in layers
        for name, readers in row.norms
    ]
    norms.append(Norm(last, _heads(checkpoint, f"{base}{first.cut.layers}.", embedding, units)))
    writes = [f"{where}{name}.weight" for where in layers for name in row.writes]
    makes = [Axis(embedding, 1, (1,)), *(Axis(name, 0, (1,)) for name in writes)]
    one_each = [norm.weight for norm in norms] + [_bias(name) for name in (*writes, *(norm.weight for norm in norms))]
    holds = [Axis(name, 0, (1,)) for name in one_each if not name.endswith(".bias") or name in checkpoint.tensors]
    hidden = Hidden(units, tuple(makes), tuple(holds), tuple(norms))
    for axis in hidden.axes:
        stored = checkpoint.tensors.get(axis.tensor)
        if stored is None or stored.shape[axis.axis] != units:
            found = "is not there" if stored is None else f"has the shape {list(stored.shape)}"
            raise InputError(
                f"{checkpoint.path}: {axis.tensor} {found}, where config.json says {units} hidden channels "
                "(hidden_size). The weights do not belong to config.json."
            )
    return hidden


def _row(checkpoint: Checkpoint) -> Stream:
    family = checkpoint.family
    if family.stream is None:
        raise InputError(
            f"--residual: the hidden_size of a {checkpoint.config['model_type']} must stay, since "
            f"{family.fixed or family.unsaid}. Leave out --residual, or give OUT.onnx, where it can go."
        )
    return family.stream


def _check_head(checkpoint: Checkpoint) -> None:
    name = (checkpoint.config.get("architectures") or [""])[0]
    if not name or name.endswith("Model"):
        raise InputError(
            f"--residual: {name or 'a class that config.json does not name'} has no head: the hidden channels are what "
            "it gives, and must stay. Leave out --residual, or save the model with its head."
        )


def _heads(checkpoint: Checkpoint, layers: str, embedding: str, units: int) -> tuple[str, ...]:
    """Matrices outside of the layers that read hidden channels; none where the embedding is the head, too."""
    outside = (name for name in checkpoint.tensors if not name.startswith(layers) and name != embedding)
    return tuple(name for name in outside if checkpoint.tensors[name].shape[1:] == (units,))


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.bias"


def shared_widths(
    checkpoint: Checkpoint, sites: Sequence[Site], ratio: float, step: int, mlp_step: int
) -> tuple[int, int]:
    """How many hidden channels and MLP channels stay, so that of the layers' weights the fraction ``ratio`` goes.

    With A weights in attention, whose heads all stay, and M in MLPs, both widths keep the share s with ``s A + s^2 M =
    (1 - ratio) (A + M)``. Hidden channels are rounded to ``step``, and to a multiple of the number of heads where the
    configuration asks for one; MLP channels, which have the finer steps, make up for it. A = 0, M = 1 and a ratio of
    0.19 leave 0.9 of both.
    """
    attention, mlps = (_weights(checkpoint, sites, kind) for kind in ("heads", "mlp"))
    left = (1 - ratio) * (attention + mlps)
    share = (math.sqrt(attention**2 + 4 * mlps * left) - attention) / (2 * mlps)
    hidden, width = whole_number(checkpoint, "hidden_size"), next(s.units for s in sites if s.cut.kind == "mlp")
    multiple = math.lcm(step, heads_of(checkpoint)[0] if checkpoint.family.whole_multiple else 1)
    kept = min(hidden, max(multiple, round(share * hidden / multiple) * multiple))
    of_mlp = (left * hidden / kept - attention) / mlps
    return kept, min(width, max(mlp_step, round(of_mlp * width / mlp_step) * mlp_step))


def _weights(checkpoint: Checkpoint, sites: Sequence[Site], kind: str) -> int:
    axes = (axis for site in sites if site.cut.kind == kind for axis in (*site.makes, site.reads))
    return sum(checkpoint.tensors[name].size for name in {axis.tensor for axis in axes})
