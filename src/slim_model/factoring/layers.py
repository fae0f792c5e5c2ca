"""A graph -> the layers that can be written as several in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.ops import kind_of, linear_form_of
from slim_model.recovery.linear_layers import count_readers, stored_name_of


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer or a convolution in one block: its ``node``, the ``operand`` that it reads, the names of its
    stored ``weight`` and ``bias``; ``matrix``: its weight ``(outputs, inputs, *kernel)``; ``constant``: its bias;
    ``options``: what a convolution is given besides; ``turned``: its weight is stored ``(inputs, outputs)``."""

    node: fx.Node
    operand: fx.Node
    weight: str
    bias: str | None
    matrix: Tensor
    constant: Tensor | None
    options: dict[str, Any]
    turned: bool = False

    @property
    def kernel(self) -> tuple[int, ...]:
        """Empty where it is no convolution."""
        return tuple(self.matrix.shape[2:])


def find_layers(graph: Graph, keep: Sequence[str] = ()) -> Iterator[Layer]:
    """In the order of the graph. ``keep``: glob patterns of layers or weights that are left alone.

    Left out are grouped and transposed convolutions, and weights that are read at several places.
    """
    used = count_readers(graph)
    for node in graph.nodes:
        form = linear_form_of(node) if node.op == "call_function" else None
        if form is None or form.groups != 1:
            continue
        weight = stored_name_of(graph, form.weight, used)
        bias = stored_name_of(graph, form.bias, used)
        plain = form.bias is None or (bias is not None and graph.tensors[bias].dim() == 1)
        if weight is None or not plain or not _in_batches(form.operand):
            continue
        if form.window and form.operand.meta["val"].dim() != graph.tensors[weight].dim():  # a map without a batch
            continue
        if any(fnmatch(weight, glob) or fnmatch(weight.rpartition(".")[0], glob) for glob in keep):
            continue
        stored = graph.tensors[weight].detach()
        given = arguments_of(node) if form.window else {}
        options = {name: value for name, value in given.items() if name not in ("input", "weight", "bias")}
        if any(isinstance(value, fx.Node) for value in options.values()):
            continue
        constant, matrix = graph.tensors[bias].detach() if bias else None, stored.T if form.turned else stored
        yield Layer(node, form.operand, weight, bias, matrix, constant, options, form.turned)


def _in_batches(operand: fx.Node) -> bool:
    """It is an activation of samples."""
    value = operand.meta.get("val")
    return isinstance(value, Tensor) and value.dim() >= 2 and operand.op != "get_attr" and kind_of(operand) != "cast"
