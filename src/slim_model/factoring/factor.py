"""A graph and data -> how each of its layers is written as several in a row, and what each rank carries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.cutting.resize import resize
from slim_model.data.batches import Data
from slim_model.data.holdout import split_off_held_out
from slim_model.errors import InputError
from slim_model.factoring.forms import FORMS, Form
from slim_model.factoring.layers import Layer, find_layers
from slim_model.factoring.moments import gather
from slim_model.factoring.split import Split
from slim_model.factoring.write_factors import write_factors
from slim_model.graph.graph import Graph
from slim_model.progress import Progress, count_in_text, say_nothing

Place = tuple[str, int]
"""One axis of a stored tensor."""


@dataclass(frozen=True, slots=True)
class Written:
    """One layer, the name of the form that it takes, and its parts."""

    layer: Layer
    form: str
    split: Split

    @property
    def places(self) -> dict[Place, Place]:
        """Where the outer axes of its parts lie in the tensors of the layer."""
        path, last = self.layer.weight.removesuffix(".weight"), len(self.split.parts) - 1
        out, taken = (1, 0) if self.layer.turned else (0, 1)
        places = {
            (f"{path}.0.weight", 1): (self.layer.weight, taken),
            (f"{path}.{last}.weight", 0): (self.layer.weight, out),
        }
        return places | ({(f"{path}.{last}.bias", 0): (self.layer.bias, 0)} if self.layer.bias else {})


@dataclass(frozen=True, slots=True)
class Factoring:
    """``start``, in which no layer is factored, and how each can be ``written``. ``graph``: ``start`` with all of them
    written so. ``error``: how far it was found to be from ``start``."""

    start: Graph
    written: tuple[Written, ...]
    graph: Graph
    error: float | None = None

    def only(self, layers: Collection[str]) -> Factoring:
        """With those layers alone whose weights have these names."""
        return factoring_of(self.start, [one for one in self.written if one.layer.weight in layers])

    @property
    def places(self) -> dict[Place, Place]:
        """Axes of tensors of ``graph`` -> the same axes in ``start``, where their names differ."""
        return {place: start for one in self.written for place, start in one.places.items()}

    @property
    def lost(self) -> dict[str, Tensor]:
        """By the stored weight that makes a rank: the share of its layer's spread that goes with each position."""
        return {
            f"{one.layer.weight.removesuffix('.weight')}.{number}.weight": lost
            for one in self.written
            for number, lost in enumerate(one.split.lost)
        }


def factor(
    graph: Graph,
    forms: Sequence[str],
    keep: Sequence[str] = (),
    data: Data | None = None,
    *,
    progress: Progress = say_nothing,
) -> Factoring:
    """Each layer that some of ``forms`` fit, in that which loses least at half of its multiply-adds. ``keep``: glob
    patterns of layers that are left as they are. With ``data`` ranks are sorted by what they carry on it, else by their
    weights alone.

    Raises InputError where no layer can be factored.
    """
    if graph.program is None:  # each of its nodes was traced in a mode of its own
        graph = resize(graph)
    layers = [layer for layer in find_layers(graph, keep) if min(layer.matrix.shape[:2]) > 1]
    fitting = [(layer, own) for layer in layers if (own := _forms_of(layer, forms))]
    if not fitting:
        raise InputError(
            f"no layer can be factored as {', '.join(forms)}: it takes linear layers and convolutions in one block, "
            "each with a weight of its own, that --keep does not name. Leave out --low-rank."
        )
    moments = {}
    if data is not None:
        progress("reading what layers give")
        fit, _ = split_off_held_out(data, graph)
        wanted = dict.fromkeys((what, layer.weight) for layer, own in fitting for form in own for what in form.observes)
        of_name = {layer.weight: layer for layer, _ in fitting}
        moments = gather(graph, [(what, of_name[name]) for what, name in wanted], fit)
    written = []
    with torch.no_grad():
        count = count_in_text(progress, "factoring layers")
        for number, (layer, own) in enumerate(fitting):
            count(number, len(fitting))
            splits = [
                (form.name, form.split(layer, *(moments.get((what, layer.weight)) for what in form.observes)))
                for form in own
            ]
            room = layer.matrix.numel() / 2
            name, split = min(splits, key=lambda each: each[1].lost_at(room))
            written.append(Written(layer, name, split))
    return factoring_of(graph, written)


def factoring_of(start: Graph, written: Sequence[Written]) -> Factoring:
    """``start`` with these layers written so."""
    graph = write_factors(start, [(one.layer, one.form, one.split.parts) for one in written]) if written else start
    return Factoring(start, tuple(written), graph)


def _forms_of(layer: Layer, forms: Sequence[str]) -> list[Form]:
    """Those that fit."""
    return [FORMS[name] for name in forms if FORMS[name].fits(layer.kernel, layer.options.get("padding"))]
