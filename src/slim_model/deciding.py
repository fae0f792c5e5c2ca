"""deciding: a module that makes decisions from its values, in the place of its graph where it is written and run.

The graph of such a module follows one run and has the sizes of that run in it as numbers. TorchScript's tracer keeps
sizes as values where a module takes care of that, as detection models do: their boxes are as many in ONNX as are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from slim_model.errors import ExportError
from slim_model.trace import Graph, evaluating, quiet


@dataclass(frozen=True, slots=True)
class Deciding:
    """``module`` computes what ``graph`` does, and decides for itself."""

    module: nn.Module
    graph: Graph

    def run(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """Outputs (flattened, tensors only) of the module on flattened ``inputs``."""
        copies = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
        with evaluating(self.module):
            result = self.module(*self.graph.arguments(copies))
        return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


def on_its_own(graph: Graph, module: nn.Module) -> Graph | Deciding:
    """What is written and run of a model: its graph, unless that holds for the decisions of one run only."""
    return Deciding(module, graph) if graph.decisions else graph


def by_torchscript(model: Deciding, path: Path, opset: int | None) -> onnx_ir.Model:
    """The ONNX model that PyTorch's older exporter writes at ``path``."""
    inputs = model.graph.arguments(model.graph.inputs)
    try:
        with evaluating(model.module), quiet():
            torch.onnx.export(model.module, inputs, str(path), dynamo=False, opset_version=opset)
    except Exception as error:  # of the exporter or of the user's forward, which have no common root
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ExportError(
            "the model makes decisions from its values, so that the graph of one run would be wrong for other inputs, "
            f"and the exporter that keeps them does not write it: {first}."
        ) from error
    return onnx_ir.load(path)
