"""Proof that the factored graph computes what the graph did before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.errors import ProofError
from slim_model.factoring.factor import Factoring
from slim_model.graph.decisions import Decided
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import tensors_among
from slim_model.proof.tolerance import TOLERANCE, relative_error


def prove_same(factoring: Factoring, batches: Sequence[tuple[Any, ...]]) -> Factoring:
    """``factoring`` with its ``error``: the largest, relative to the largest value, of any output and of what any
    factored layer gives, over ``batches``. In float64 where float32 rounding alone comes near the tolerance.

    Raises ProofError above it.
    """
    start, graph = factoring.start, factoring.graph
    names = {layer.factors[-1].node for layer in graph.factored}
    error = _largest(start, graph, names, batches)
    if not error <= TOLERANCE:
        wide = [tuple(_widened(x) for x in inputs) for inputs in batches]
        error = _largest(_double(start), _double(graph), names, wide, wide=True)
    if not error <= TOLERANCE:
        raise ProofError(
            f"the model with its layers factored differs from the dense one by {error:.1e}. Nothing was written. "
            "This is a fault of slim-model: please report the model; leave out --low-rank."
        )
    return replace(factoring, error=error)


def _largest(
    start: Graph, graph: Graph, names: set[str], batches: Sequence[tuple[Any, ...]], *, wide: bool = False
) -> float:
    return max(
        relative_error(expected, got)
        for inputs in batches
        for expected, got in zip(
            _values(start, names, inputs, wide=wide), _values(graph, names, inputs, wide=wide), strict=True
        )
    )


def _values(graph: Graph, names: set[str], inputs: tuple[Any, ...], *, wide: bool) -> Iterator[Tensor]:
    """What the nodes of these names give, then the outputs."""
    run = _Recording(graph, names, wide=wide)
    with torch.no_grad():
        outputs = run.run(initial_env=graph.bind(inputs))
    yield from run.values
    yield from tensors_among(outputs)


class _Recording(Decided):
    """Runs a graph, and keeps what some of its nodes give."""

    def __init__(self, graph: Graph, names: set[str], *, wide: bool) -> None:
        super().__init__(graph.module, graph.decisions, wide=wide, garbage_collect_values=True)
        self.names = names
        self.values: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.values.append(result.clone())  # what follows may write to it
        return result


def _double(graph: Graph) -> Graph:
    return graph.with_tensors({name: _widened(tensor) for name, tensor in graph.tensors.items()})


def _widened(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
