"""What ONNX has no form for, asked before the work: no way of PyTorch's exporter ends at such an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slim_model.errors import ExportError
from slim_model.export.lower import SIMPLER
from slim_model.export.onnx_translations import TRANSLATIONS
from slim_model.graph.graph import Graph, source_line
from slim_model.ops import kind_of

aten = torch.ops.aten


def check_writable(graph: Graph) -> None:
    """Raise ExportError where an operator of ``graph`` is known to have no form in ONNX."""
    node = unwritable_node(graph)
    if node is not None:
        where = f" (at {line})" if (line := source_line(node)) else ""
        raise ExportError(
            f"PyTorch cannot write {node.target} as ONNX{where}, so nothing was removed. Write it in another way, or "
            "add --save small.safetensors or small.pt: the small PyTorch model is made and kept."
        )


def unwritable_node(graph: Graph) -> fx.Node | None:
    """The first node that is written by none of what the exporter knows; None where there is none, or it is not known.

    A graph that holds for the decisions of one run is written by another exporter, and only packed sequences are known.
    """
    for node in graph.nodes:
        if node.target is aten._pack_padded_sequence.default:
            return node
        if not graph.decisions and _has_no_form(node):
            return node
    return None


def _has_no_form(node: fx.Node) -> bool:
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or kind_of(node) == "assertion":
        return False
    if target in TRANSLATIONS or target in SIMPLER or target._schema.is_mutable:
        return False
    # Nearly all are known without asking the exporter, which takes a second to tell what it knows.
    if torch.Tag.core in target.tags or target._can_decompose() or target in torch._decomp.decomposition_table:
        return False
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # private; torch 2.11 to 2.15 have it

    return (
        not ONNXRegistry.from_torchlib().is_registered(target) and target not in torch.export.default_decompositions()
    )
