"""What stages promise of the graphs that they hand on; each checks it at its end, where a fault still has its name."""

from __future__ import annotations

from torch import Tensor

from slim_model.errors import ensure
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import shape_of


def whole(graph: Graph, stage: str) -> Graph:
    """``graph``, in which every node stands behind what it reads, every stored tensor that is read is there and has the
    size that its placeholder notes, and each other placeholder has an example input. Raises InternalError."""
    before = set()
    inputs = 0
    for node in graph.nodes:
        unread = next((read for read in node.all_input_nodes if read not in before), None)
        ensure(unread is None, stage, f"'{node.name}' stands before '{unread}', which it reads")
        before.add(node)
        if node.op != "placeholder":
            continue
        owner, noted = graph.owners.get(node.name), node.meta.get("val")
        inputs += owner is None
        if owner is not None:
            ensure(owner in graph.tensors, stage, f"'{node.name}' stands for '{owner}', which is not stored")
            if isinstance(noted, Tensor):
                shape, stored = shape_of(noted), tuple(graph.tensors[owner].shape)
                ensure(shape == stored, stage, f"'{owner}' is {list(stored)}, and noted as {list(shape)}")
    ensure(inputs == len(graph.inputs), stage, f"{inputs} inputs are read, and {len(graph.inputs)} are given")
    return graph


def same_sizes(graph: Graph, before: Graph, stage: str) -> Graph:
    """``graph``, which differs from ``before`` in the values of stored tensors alone. Raises InternalError."""
    ensure(graph.tensors.keys() == before.tensors.keys(), stage, "it stores other tensors")
    for name, tensor in graph.tensors.items():
        old = before.tensors[name]
        alike = tensor.shape == old.shape and tensor.dtype == old.dtype
        ensure(alike, stage, f"'{name}' became {list(tensor.shape)} {tensor.dtype} from {list(old.shape)} {old.dtype}")
    return graph
