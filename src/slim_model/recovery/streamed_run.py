"""Run a graph layer by layer over all batches, keeping the live values of each batch where memory allows."""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from slim_model.data.holdout import Part, Parts
from slim_model.graph.graph import Graph

MEMORY = 1 << 30
"""Bytes of values that one track keeps between layers; parts beyond are run from the start each time."""


@dataclass(slots=True)
class Stop:
    """Where a part has come to: ``values`` by the node's name are what is needed from here on."""

    part: Part
    position: int
    env: dict[fx.Node, Any]

    @property
    def values(self) -> dict[str, Any]:
        return {node.name: value for node, value in self.env.items()}

    @property
    def bytes(self) -> int:
        tensors = [x for x in pytree.tree_leaves(list(self.env.values())) if isinstance(x, Tensor)]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors}
        return sum(storage.nbytes() for storage in storages.values())


class StreamedRun:
    """Moves forward only; ``replace`` gives tensors other values for the layers that are still to come."""

    def __init__(self, graph: Graph, parts: Parts, memory: int = MEMORY) -> None:
        self.graph, self.parts, self.memory = graph, parts, memory
        self.nodes = list(graph.nodes)
        self.index = {node.name: i for i, node in enumerate(self.nodes)}
        self.last = {m: i for i, node in enumerate(self.nodes) for m in node.all_input_nodes}
        self.runner = fx.Interpreter(graph.module)
        self.tensors = {name: tensor.detach() for name, tensor in graph.tensors.items()}
        self.placeholders = [n for n in self.nodes if n.op == "placeholder" and n.name in graph.owners]
        self.stops: dict[int, Stop] = {}
        self.sizes: dict[int, int] = {}
        self.total = -1

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.tensors |= tensors

    def stored(self, node: fx.Node) -> Tensor:
        """The tensor that a placeholder stands for."""
        return self.tensors[self.graph.owners[node.name]]

    def value(self, stop: Stop, node: fx.Node) -> Any:
        """What ``node`` gives, where it is needed at ``stop``."""
        return stop.env[node] if node in stop.env else self.stored(node)

    def at_start(self) -> StreamedRun:
        """The same run from its start, with the tensors there are now."""
        run = StreamedRun(self.graph, self.parts, self.memory)
        run.tensors = self.tensors
        return run

    def trying(self, tensors: dict[str, Tensor]) -> StreamedRun:
        """The same run at the same place, as if these tensors had been replaced."""
        run = copy.copy(self)
        run.tensors = self.tensors | tensors
        return run

    def before(self, name: str) -> Iterator[Stop]:
        """Every part, right before the node ``name`` is run."""
        yield from self._at(self.index[name])

    def after(self, name: str) -> Iterator[Stop]:
        yield from self._at(self.index[name] + 1)

    def _at(self, position: int) -> Iterator[Stop]:
        if len(self.stops) == self.total:
            for number in range(self.total):
                yield self._moved(number, self.stops[number], position)
            return
        number = -1
        for number, part in enumerate(self.parts()):
            yield self._moved(number, self.stops.get(number) or self._start(part), position)
        self.total = number + 1

    def _start(self, part: Part) -> Stop:
        env = self.graph.bind(part.inputs)
        return Stop(part, 0, {n: x for n, x in env.items() if n.name not in self.graph.owners})

    def _moved(self, number: int, stop: Stop, position: int) -> Stop:
        if number in self.stops and stop.position >= position:
            return stop  # it is there, and held
        self.runner.env = ChainMap(stop.env, {n: self.stored(n) for n in self.placeholders})  # type: ignore[assignment]
        with torch.no_grad():
            for i in range(stop.position, position):
                node = self.nodes[i]
                if node.op != "placeholder":
                    stop.env[node] = self.runner.run_node(node)
                for read in (*node.all_input_nodes, node):
                    if self.last.get(read, -1) <= i:
                        stop.env.pop(read, None)
        stop.position = max(stop.position, position)
        self.sizes[number] = stop.bytes
        if sum(size for other, size in self.sizes.items() if other in self.stops or other == number) <= self.memory:
            self.stops[number] = stop
        else:
            self.stops.pop(number, None)
        return stop
