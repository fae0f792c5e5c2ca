"""What a model costs with any choice of channels, counted from the plan in about a millisecond; nothing is run.

How many positions of every axis are left is one sparse product with the channels kept; each operator's row says what
its layer costs at these sizes. One multiply-accumulate (MAC) is one multiplication and one addition; only layers are
counted, not additions, norms or activations. Counts are for one example (batch 1). A layer that is written as factors
counts as these, or as the one layer that is their product where that takes no more MACs (or no more of what a rule
compares): it will be multiplied back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from torch import Tensor, fx

from slim_model.coupling.coupling import Coupling
from slim_model.graph.graph import Factored
from slim_model.graph.nodes import arguments_of
from slim_model.graph.tensor_trees import batch_of
from slim_model.labels.values import Value, fixed_value, tensors_in
from slim_model.ops import Op, row_of
from slim_model.ops.movement import stored_index

ENERGY = {"mac": 1.0, "register": 4.0, "memory": 200.0}
"""In units of one MAC: the multiplication, its register accesses, and a value fetched from or put into memory."""


@dataclass(frozen=True, slots=True)
class Cost:
    """``params``: stored trained values; ``bytes``: all stored tensors; ``macs``: per example."""

    params: int
    macs: int
    bytes: int


class Operands(NamedTuple):
    """A layer of the graph with the sizes that its output and arguments have; ``whole``: it is the one layer that some
    factors are the product of, where the last of them stands."""

    node: fx.Node
    row: Op
    out: Value
    arguments: dict[str, Any]
    whole: bool = False

    @property
    def macs(self) -> int:
        """Of the whole batch."""
        return self.row.macs(self.out, **self.arguments) if self.row.macs else 0


class Product(NamedTuple):
    """A factored layer at some sizes: its ``factors``, and the ``whole``, the one layer that is their product."""

    layer: Factored
    factors: list[Operands]
    whole: Operands


Pays = Callable[[Product], bool]
"""Whether a factored layer stays as its factors."""


def by_macs(product: Product) -> bool:
    """Where these take fewer multiply-adds."""
    return sum(factor.macs for factor in product.factors) < product.whole.macs


def cost(coupling: Coupling, keep: np.ndarray | None = None) -> Cost:
    """The cost of one choice of channels (``keep``: bool by component number; None keeps all). Who asks often keeps the
    ``CostModel``."""
    return CostModel(coupling)(keep)


class CostModel:
    """Counts what a model costs with any choice of channels: ``model(keep)`` is its ``Cost``, where ``keep`` is bool by
    component number, None for all channels."""

    def __init__(self, coupling: Coupling) -> None:
        self._coupling = coupling
        self._axes: list[np.ndarray] = []
        self._number: dict[int, int] = {}
        self.batch = batch_of(coupling.graph.inputs)
        self.dynamic = coupling.graph.dynamic_batch
        self._layers = [*self._all_layers()]
        place = {layer[0].name: at for at, layer in enumerate(self._layers)}
        factored = coupling.graph.factored
        self._products = [(layer, [place[factor.node] for factor in layer.factors]) for layer in factored]
        self.pays: Pays = by_macs
        self._row_of: dict[str, int] = {}
        self._stored, self._stored_bytes, self._trained = self._all_stored()
        self._made, self._made_bytes, self._alive = self._all_made()
        self._terms = [*self._all_terms()]
        rows = np.repeat(np.arange(len(self._axes)), [len(axis) for axis in self._axes])
        columns = np.concatenate([*self._axes, np.zeros(0, np.int64)])
        ones = np.ones(len(rows), np.int64)
        self._holds = csr_matrix((ones, (rows, columns)), shape=(len(self._axes), coupling.components))

    def with_rule(self, pays: Pays) -> CostModel:
        """The same, in which factored layers stay so where ``pays`` says so."""
        other = copy.copy(self)
        other.pays = pays
        return other

    def __call__(self, keep: np.ndarray | None = None) -> Cost:
        sizes = self._sizes(keep)
        at = sizes.tolist()
        products = self._products_at(at)
        counts = self._stored_counts(sizes, products)
        macs = sum(layer.macs // self.batch for layer in self._filled(at, products))
        return Cost(int(counts[self._trained].sum()), macs, int(counts @ self._stored_bytes))

    def by_layer(self, keep: np.ndarray | None = None) -> dict[fx.Node, int]:
        """MACs of each layer, per example."""
        return {layer.node: layer.macs // self.batch for layer in self.layers(keep) if layer.row.macs}

    def layers(self, keep: np.ndarray | None = None) -> Iterator[Operands]:
        """Each layer as it is with these channels, at the batch of the example."""
        return self._filled(self._sizes(keep).tolist())

    def forms(self, keep: np.ndarray | None = None) -> Iterator[Operands]:
        """Each layer as it is with these channels, factored ones both as their factors and as the one layer: always the
        same ones, in the same order."""
        sizes = self._sizes(keep).tolist()
        yield from (self._at(place, sizes) for place in range(len(self._layers)))
        yield from (product.whole for product in self._products_at(sizes))

    def products(self, keep: np.ndarray | None = None) -> list[Product]:
        """Each factored layer with these channels, in the order of ``Graph.factored``."""
        return self._products_at(self._sizes(keep).tolist())

    def _product(self, layer: Factored, places: list[int], sizes: list[int]) -> Product:
        factors = [self._at(place, sizes) for place in places]
        first, last = factors[0], factors[-1]
        # As the last factor is called, on what the first one reads, with a weight of the size of the whole one.
        made = last.arguments["weight"].shape[0]
        taken = first.arguments["input"].shape[1 if layer.shape[2:] else -1]
        weight = fixed_value((made, taken, *layer.shape[2:]))
        arguments = last.arguments | layer.options | {"input": first.arguments["input"], "weight": weight}
        return Product(layer, factors, Operands(last.node, last.row, last.out, arguments, whole=True))

    def _filled(self, sizes: list[int], products: list[Product] | None = None) -> Iterator[Operands]:
        """Each layer at these sizes; of a factored one its factors, or the one that is their product."""
        known: dict[int, Operands | None] = {}
        for (_, places), product in zip(self._products, products or self._products_at(sizes), strict=True):
            known |= dict(zip(places, product.factors, strict=True))
            if not self.pays(product):
                known |= dict.fromkeys(places) | {places[-1]: product.whole}
        for place in range(len(self._layers)):
            operands = known[place] if place in known else self._at(place, sizes)
            if operands is not None:
                yield operands

    def _products_at(self, sizes: list[int]) -> list[Product]:
        return [self._product(layer, places, sizes) for layer, places in self._products]

    def _at(self, place: int, sizes: list[int]) -> Operands:
        node, row, out, arguments = self._layers[place]
        filled = {name: _filled(value, sizes) for name, value in arguments.items()}
        return Operands(node, row, _filled(out, sizes), filled)

    def _stored_counts(self, sizes: np.ndarray, products: list[Product]) -> np.ndarray:
        """How many values each stored tensor holds; of a layer that is multiplied back all stand in its last factor."""
        counts = self._stored.counts(sizes)
        for layer, _, whole in (product for product in products if not self.pays(product)):
            for name in (name for factor in layer.factors for name in (factor.weight, factor.bias) if name):
                counts[self._row_of[name]] = 0
            weight = whole.arguments["weight"].shape
            counts[self._row_of[layer.factors[-1].weight]] = np.prod(weight) + layer.bias * weight[0]
        return counts

    def channels(self, keep: np.ndarray | None = None) -> int:
        """Of layers' outputs, where some may go."""
        kept = self._coupling.keep_all() if keep is None else keep
        return sum(int(kept[g.channels].sum()) * g.span for g in self._coupling.groups)

    def memory(self, keep: np.ndarray | None = None) -> int:
        """Bytes of all stored tensors and of the activations that are alive together, at their most. A view takes
        none; a runtime that runs operators in another order, or in place, differs."""
        sizes = self._sizes(keep)
        alive = self._alive @ (self._made.counts(sizes) * self._made_bytes)
        stored = self._stored_counts(sizes, self._products_at(sizes.tolist()))
        return int(stored @ self._stored_bytes + max(alive, default=0) / self.batch)

    def energy(self, keep: np.ndarray | None = None) -> float:
        """Estimated, in MACs: per layer ``(mac + register) MACs + memory (weights + inputs + outputs)``, each value
        fetched once from memory (Yang, Chen, Sze, CVPR 2017, with perfect reuse on the chip)."""
        return sum(self.energy_by_layer(keep).values())

    def energy_by_layer(self, keep: np.ndarray | None = None) -> dict[fx.Node, float]:
        return {layer.node: self._energy(layer) for layer in self.layers(keep) if layer.row.macs}

    def _energy(self, layer: Operands) -> float:
        constants = {
            name
            for name, given in arguments_of(layer.node).items()
            if all(self._coupling.labelled.constants.of(n) is not None for n in _nodes_in(given))
        }
        moved = float(np.prod(layer.out.shape)) / self.batch
        for name, value in layer.arguments.items():
            values = sum(float(np.prod(v.shape)) for v in tensors_in([value]))
            moved += values if name in constants else values / self.batch
        return (ENERGY["mac"] + ENERGY["register"]) * layer.macs / self.batch + ENERGY["memory"] * moved

    def _sizes(self, keep: np.ndarray | None) -> np.ndarray:
        kept = (self._coupling.keep_all() if keep is None else keep).astype(np.int64)
        counted: np.ndarray = self._holds @ kept
        for source, size, axes in self._terms:  # so many of each input that is left
            counted[axes] = counted[axes] // size * counted[source]
        return counted

    def _all_terms(self) -> Iterator[tuple[int, int, list[int]]]:
        """Of layers that make terms of each input: the axis of these, its dense size, and the axes of the terms."""
        component = self._coupling.component
        for inputs, made, _ in self._coupling.labelled.terms:
            labels = component[made.numpy()]
            axes = [number for number, axis in enumerate(self._axes) if np.array_equal(axis, labels)]
            yield -1 - self._axis(id(inputs), component[inputs.numpy()]), len(inputs), axes

    def _all_layers(self) -> Iterator[tuple[fx.Node, Op, Any, dict[str, Any]]]:
        labelled = self._coupling.labelled
        for node in self._coupling.graph.nodes:
            row = row_of(node.target) if node.op == "call_function" else None
            outputs = tensors_in([labelled.values[node]])
            if row is not None and (row.macs or row.layer) and outputs:
                arguments = {name: self._template(x) for name, x in labelled.arguments(node).items()}
                yield node, row, self._template(outputs[0]), arguments

    def _all_stored(self) -> tuple[_Shapes, np.ndarray, np.ndarray]:
        graph, sizes, trained = self._coupling.graph, list[int](), list[bool]()
        shapes: list[tuple[int, ...]] = []
        looked_up = self._looked_up()
        for owner, tensor in graph.tensors.items():
            if owner in self._coupling.labelled.shared:
                continue
            shape = list(tensor.shape)
            for birth in self._coupling.births_of(owner):
                labels = self._coupling.component[birth.start : birth.start + birth.size]
                shape[birth.axis] = self._axis(-birth.start, looked_up.get(owner, labels))
            self._row_of[owner] = len(shapes)
            shapes.append(tuple(shape))
            sizes.append(tensor.element_size())
            trained.append(owner in graph.parameter_names)
        return _Shapes(shapes), np.array(sizes, np.int64), np.array(trained, bool)

    def _looked_up(self) -> dict[str, np.ndarray]:
        """Of stored indices into channels, by owner: the channels that they name, with which their entries go."""
        found = {}
        for node in self._coupling.graph.nodes:
            dim, stored = stored_index(node)
            if stored is None or stored.name not in self._coupling.graph.owners:
                continue
            owner = self._coupling.graph.owners[stored.name]
            axis = self._coupling.labelled.values[node].axes[dim]
            if axis is not None and len(axis) == self._coupling.graph.tensors[owner].numel():  # a mask names fewer
                found[owner] = self._coupling.component[axis.numpy()]
        return found

    def _all_made(self) -> tuple[_Shapes, np.ndarray, csr_matrix]:
        """What operators put into memory; ``alive[i, j]``: value j is needed when operator i has run."""
        nodes = list(self._coupling.graph.nodes)
        last = _last_uses(nodes)
        shapes: list[tuple[int, ...]] = []
        element_bytes: list[int] = []
        operators: list[int] = []  # with ``values``: the pairs (i, j) of ``alive``
        values: list[int] = []
        for i, node in enumerate(nodes):
            # Inputs are the caller's, stored tensors are counted apart, a view takes no memory, a constant is folded.
            if node.op != "call_function" or _is_view(node) or self._coupling.labelled.constants.of(node) is not None:
                continue
            for value in tensors_in([self._coupling.labelled.values[node]]):
                # From the operator that makes it to the last one that reads it, or a view of it.
                lifetime = range(i, last[node] + 1)
                operators += lifetime
                values += [len(shapes)] * len(lifetime)
                shapes.append(self._template(value).sizes)
                element_bytes.append(_element_size(node))
        # Sparse: most values live for a few operators. A product with the sizes gives the memory at each operator.
        ones = np.ones(len(operators), np.int8)
        alive = csr_matrix((ones, (operators, values)), shape=(len(nodes), len(shapes)))
        return _Shapes(shapes), np.array(element_bytes, np.int64), alive

    def _template(self, argument: Any) -> Any:
        if isinstance(argument, Value):
            component = self._coupling.component
            pairs = zip(argument.axes, argument.shape, strict=True)
            return _Shape(tuple(n if a is None else self._axis(id(a), component[a.numpy()]) for a, n in pairs))
        if isinstance(argument, list | tuple):
            return [self._template(x) for x in argument]
        return argument

    def _axis(self, key: int, components: np.ndarray) -> int:
        if key not in self._number:
            self._number[key] = len(self._axes)
            self._axes.append(components.astype(np.int64))
        return -1 - self._number[key]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of a tensor; a negative one, ``-1 - n``, is that of axis n of the meter."""

    sizes: tuple[int, ...]


class _Shapes:
    """How many values some tensors hold, for given sizes of the axes."""

    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        free = [[-1 - n for n in shape if n < 0] for shape in shapes]
        self.constant = np.array([np.prod([n for n in s if n >= 0], dtype=np.int64) for s in shapes], np.int64)
        rank = max(map(len, free), default=0)
        self.axes = np.array([[*axes, *[-1] * (rank - len(axes))] for axes in free], np.int64).reshape(len(free), rank)

    def counts(self, sizes: np.ndarray) -> np.ndarray:
        known = np.append(sizes, 1)  # axis -1
        counted: np.ndarray = self.constant * known[self.axes].prod(1)
        return counted


def _filled(template: Any, sizes: list[int]) -> Any:
    if isinstance(template, _Shape):
        return fixed_value(tuple(n if n >= 0 else sizes[-1 - n] for n in template.sizes))
    if isinstance(template, list):
        return [_filled(x, sizes) for x in template]
    return template


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """The number of the last operator that needs a value, through views of it."""
    last: dict[fx.Node, int] = {}
    for i, node in reversed(list(enumerate(nodes))):
        last.setdefault(node, i)
        for read in node.all_input_nodes:
            last[read] = max(last.get(read, i), last[node] if _is_view(node) else i)
    return last


def _nodes_in(argument: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.map_arg(argument, nodes.append)
    return nodes


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if node.op == "call_function" and schema is None:  # picks one of several results
        return True
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _element_size(node: fx.Node) -> int:
    value = node.meta.get("val")
    first = value if isinstance(value, Tensor) else next((v for v in value or () if isinstance(v, Tensor)), None)
    return 4 if first is None else first.element_size()
