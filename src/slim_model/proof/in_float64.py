"""A graph in float64, whose rounding is no more than 1e-12: what differs from it more is wrong, or rounding itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slim_model.graph.decisions import Decided
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import tensors_among


def run_in_float64(graph: Graph, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The outputs of ``graph``, tensors alone, computed in float64."""
    wide = doubled(graph)
    with torch.no_grad():
        run = Decided(wide.module, wide.decisions, wide=True)
        return tensors_among(run.run(initial_env=wide.bind(tuple(map(widened, inputs)))))


def doubled(graph: Graph) -> Graph:
    """``graph`` with its stored tensors in float64."""
    return graph.with_tensors({name: widened(tensor) for name, tensor in graph.tensors.items()})


def widened(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
