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


def in_order_of(expected: list[Tensor], got: list[Tensor]) -> list[Tensor]:
    """``got`` with its rows in the order of ``expected``: of boxes with nearly the same score any may come first.

    Outputs with as many rows as the first are reordered together, to the nearest rows; all stay as they are where that
    is no permutation.
    """
    count = len(expected[0]) if expected and expected[0].dim() else 0
    if count < 2 or [x.shape for x in expected] != [x.shape for x in got]:
        return got
    alike = [number for number, x in enumerate(expected) if x.dim() and len(x) == count]
    scales = [max(float(expected[number].abs().max()), 1e-30) for number in alike]
    mine, theirs = (
        torch.cat([x[number].reshape(count, -1).double() / s for number, s in zip(alike, scales, strict=True)], 1)
        for x in (expected, got)
    )
    order = torch.cdist(mine, theirs).argmin(1)
    if len(order.unique()) < count:
        return got
    return [x[order] if number in alike else x for number, x in enumerate(got)]


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
