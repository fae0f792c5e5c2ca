"""The gates of recurrent layers, each as one matrix product of what a step takes in and the state before it.

A step of an LSTM (Hochreiter, Schmidhuber 1997) sums ``[x; h] [W_ih, W_hh]^T + b_ih + b_hh`` ahead of its gates, and so
does a plain recurrent layer; a GRU (Cho et al. 2014) multiplies the state's part of its last gate by another gate, so
that the two parts of that gate are layers of their own; a projection (Sak et al. 2014) reads the cells. Once the states
of a run are known, the rows of all steps are those of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.ops import kind_of
from slim_model.recovery.linear_layers import (
    Call,
    Kept,
    LinearLayer,
    count_readers,
    find_linear_layers,
    nodes_without_data,
    positions,
    stored_name_of,
)

ValueOf = Callable[[fx.Node], Any]


class Trail(NamedTuple):
    """One run of one layer and direction, each ``(step, sample, width)``: what it takes in, its state before the step,
    what it gives; ``cells``: what a projection reads, else None."""

    input: Tensor
    state: Tensor
    output: Tensor
    cells: Tensor | None


@dataclass(frozen=True, slots=True)
class GateLayer(LinearLayer):
    """Some gates of one layer and direction, ``at``, of a recurrent operator: rows ``first`` to ``last`` of ``blocks``
    in each of the ``matrices``, one for each field of a Trail that is read, and of the ``biases``, which are added
    up."""

    at: int
    matrices: tuple[str, ...]
    biases: tuple[str, ...]
    reads: tuple[str, ...]
    first: int
    last: int
    blocks: int

    @property
    def key(self) -> Hashable:
        return self.node, self.at, self.first, self.reads

    @property
    def names(self) -> tuple[str, ...]:
        return self.matrices

    @property
    def repeated(self) -> bool:
        return True

    def weights_in(self, tensors: Mapping[str, Tensor], groups: int) -> Tensor:
        return torch.cat([self._own(tensors[name]) for name in self.matrices], 1)[None, :, :, None]

    def constant_in(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        return (
            sum((self._own(tensors[name]).double() for name in self.biases), torch.zeros(())) if self.biases else None
        )

    def changed(self, weights: Tensor, constant: Tensor | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        changed = {name: tensors[name].detach().clone() for name in (*self.matrices, *self.biases)}
        widths = [tensors[name].shape[1] for name in self.matrices]
        for name, part in zip(self.matrices, weights[0, :, :, 0].split(widths, 1), strict=True):
            self._own(changed[name])[:] = part.to(changed[name])
        if constant is not None and self.biases:
            name, *others = self.biases
            rest = sum((self._own(tensors[other]).double() for other in others), torch.zeros(()))
            self._own(changed[name])[:] = (constant.to(changed[name].device) - rest).to(changed[name])
        return changed

    def taken(self, trail: Trail) -> Tensor:
        """``(step, sample, input)``"""
        return torch.cat([getattr(trail, field) for field in self.reads], -1)

    def _own(self, stored: Tensor) -> Tensor:
        """Its rows of a stored tensor."""
        rows = len(stored) // self.blocks
        return stored.detach()[self.first * rows : self.last * rows]


def find_layers(dense: Graph, small: Graph, kept: Kept) -> list[LinearLayer]:
    """In the order of the graph; those of one node in the order in which it runs them."""
    order = {node.name: number for number, node in enumerate(dense.nodes)}
    layers: list[LinearLayer] = [*find_linear_layers(dense, small, kept), *find_gate_layers(dense, small, kept)]
    return sorted(layers, key=lambda layer: order[layer.node])


def note(took: dict[str, str], layer: LinearLayer, what: str) -> None:
    """What a layer took, by the names of its weights; gates apart may share one."""
    for name in layer.names:
        took[name] = f"{took[name]}; {what}" if name in took else what


def find_gate_layers(dense: Graph, small: Graph, kept: Kept) -> list[GateLayer]:
    """Those of every recurrent operator whose tensors nothing else reads, in the order of the graph."""
    used, places = count_readers(dense), dict[Hashable, list[fx.Node]]()
    constants = nodes_without_data(dense)
    for node in dense.nodes:
        if node.op == "call_function" and kind_of(node) == "recurrent":
            given = arguments_of(node)
            if "batch_sizes" not in given and given["input"] not in constants:  # no packed sequence
                alike = (node.target, tuple(_stored(given)), given.get("bidirectional"), given.get("num_layers"))
                places.setdefault(alike, []).append(node)
    layers: list[GateLayer] = []
    for nodes in places.values():
        for at, parameters in enumerate(_by_layer(nodes[0])):
            names = [stored_name_of(dense, node, used, len(nodes)) for node in parameters]
            calls = tuple(Call(node.name, _operand(node).name) for node in nodes)
            if None not in names:
                layers += _layers(nodes[0], at, [name for name in names if name], calls, dense, small, kept)
    return layers


def _layers(
    node: fx.Node, at: int, names: list[str], calls: tuple[Call, ...], dense: Graph, small: Graph, kept: Kept
) -> Iterator[GateLayer]:
    has_biases = len(names) >= 4
    w_ih, w_hh, *rest = names
    blocks = _gates(node, dense.tensors[w_hh])
    biases = tuple(rest[:2]) if has_biases else ()
    both = ("input", "state")

    def layer(
        reads: tuple[str, ...], matrices: tuple[str, ...], own: tuple[str, ...], span: tuple[int, int, int]
    ) -> GateLayer:
        first, last, of = span
        sizes = [tuple(dense.tensors[name].shape) for name in matrices]
        rows = sizes[0][0] // of
        outputs = positions(kept, matrices[0], 0, sizes[0][0])
        outputs = outputs[(outputs >= first * rows) & (outputs < last * rows)] - first * rows
        inputs, width = [], 0
        for name, (_, columns) in zip(matrices, sizes, strict=True):
            inputs.append(positions(kept, name, 1, columns) + width)
            width += columns
        return GateLayer(
            calls=calls, weight=matrices[0], constant=(own[0], 1) if own else None, window=None, turned=False,
            inputs=torch.cat(inputs), outputs=outputs, groups=torch.zeros(1, dtype=torch.int64), all_groups=1,
            width=width, at=at, matrices=matrices, biases=own, reads=reads, first=first, last=last, blocks=of,
        )  # fmt: skip

    if blocks == 3:  # the last gate of a GRU: tanh(W_in x + b_in + r (W_hn h + b_hn))
        yield layer(both, (w_ih, w_hh), biases, (0, 2, 3))
        yield layer(("input",), (w_ih,), biases[:1], (2, 3, 3))
        yield layer(("state",), (w_hh,), biases[1:], (2, 3, 3))
    else:
        yield layer(both, (w_ih, w_hh), biases, (0, blocks, blocks))
    for projection in rest[2 if has_biases else 0 :]:
        yield layer(("cells",), (projection,), (), (0, 1, 1))


# -- runs -----------------------------------------------------------------------------------------------------------


def trail_of(node: fx.Node, at: int, value_of: ValueOf) -> Trail:
    """The run of layer and direction ``at``, by what ``value_of`` gives for the nodes that ``node`` reads."""
    given = fx.map_arg(arguments_of(node), value_of)
    states = list(given["hx"]) if isinstance(given["hx"], list | tuple) else [given["hx"]]
    with torch.no_grad():
        if "params" not in given:  # a cell
            before = states[0][None]
            weights = (given[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh"))
            after = node.target(given["input"], given["hx"], *weights)  # type: ignore[operator]
            return Trail(given["input"][None], before, (after if torch.is_tensor(after) else after[0])[None], None)
        return _unrolled(node.target, given, states, at)


def _unrolled(operator: Any, given: dict[str, Any], states: list[Tensor], at: int) -> Trail:
    """Layer by layer, each as an operator of its own."""
    x = given["input"].transpose(0, 1) if given["batch_first"] else given["input"]
    directions = 2 if given["bidirectional"] else 1
    each = len(given["params"]) // (given["num_layers"] * directions)
    outputs: list[Tensor] = []
    for number in range(at + 1):
        if number % directions == 0 and number:
            x, outputs = torch.cat(outputs, -1), []
        weights = given["params"][number * each : (number + 1) * each]
        own = [state[number : number + 1].contiguous() for state in states]
        turned = x.flip(0) if number % directions else x  # the second direction begins at the end
        hx = own if len(own) > 1 else own[0]
        output = operator(turned, hx, weights, given["has_biases"], 1, 0.0, False, False, False)[0]
        outputs.append(output.flip(0) if number % directions else output)
    before = torch.cat([own[0], output[:-1]])
    projected = each in (3, 5)
    return Trail(turned, before, output, _cells(turned, before, own[1][0], weights) if projected else None)


def _cells(x: Tensor, before: Tensor, cell: Tensor, weights: list[Tensor]) -> Tensor:
    """What an LSTM gives ahead of its projection, at every step."""
    w_ih, w_hh, *biases = weights[:-1]
    sums = x @ w_ih.T + before @ w_hh.T + sum(biases, torch.zeros(()))
    outputs = []
    for step in sums:
        i, f, g, o = step.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        outputs.append(o.sigmoid() * cell.tanh())
    return torch.stack(outputs)


def _operand(node: fx.Node) -> fx.Node:
    operand: fx.Node = arguments_of(node)["input"]
    return operand


def _stored(given: dict[str, Any]) -> list[fx.Node]:
    if "params" in given:
        return list(given["params"])
    return [given[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if given[name] is not None]


def _gates(node: fx.Node, w_hh: Tensor) -> int:
    """4 of an LSTM, which has two states; 3 of a GRU, 1 of a plain layer."""
    return 4 if isinstance(arguments_of(node)["hx"], list | tuple) else w_hh.shape[0] // w_hh.shape[1]


def _by_layer(node: fx.Node) -> list[list[fx.Node]]:
    """The stored tensors of each layer and direction."""
    given = arguments_of(node)
    stored = _stored(given)
    count = given["num_layers"] * (2 if given["bidirectional"] else 1) if "params" in given else 1
    each = len(stored) // count
    return [stored[i * each : (i + 1) * each] for i in range(count)]
