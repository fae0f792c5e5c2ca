"""The stored weights of the layers of an ONNX graph, in one layout for all kinds of layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, slots=True)
class StoredGraph:
    """An ONNX graph by names: ``tensors`` it stores, ``maker`` of each value, ``readers`` of each value, in order."""

    graph: Any
    tensors: dict[str, Any] = field(default_factory=dict)
    maker: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> StoredGraph:
        found = cls(model.graph, {tensor.name: tensor for tensor in model.graph.initializer})
        for node in model.graph.node:
            found.maker.update(dict.fromkeys(node.output, node))
            for name in node.input:
                found.readers.setdefault(name, []).append(node)
        return found

    def array(self, name: str) -> np.ndarray:
        return np.asarray(numpy_helper.to_array(self.tensors[name]))

    def put(self, name: str, value: np.ndarray) -> None:
        """Store ``value`` as ``name``, in place of what is stored so."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if name in self.tensors:
            self.tensors[name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
            self.tensors[name] = self.graph.initializer[-1]

    def only_reader(self, value: str) -> Any | None:
        """The one node that reads ``value``; None where there are more, or ``value`` is an output of the model."""
        readers = self.readers.get(value, [])
        is_output = any(value == output.name for output in self.graph.output)
        return readers[0] if len(readers) == 1 and not is_output else None


def attributes_of(node: Any) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def grouped(node: Any, weight: np.ndarray) -> np.ndarray:
    """A view of ``weight`` as (groups, outputs of a group, inputs of a group, kernel).

    Channels are numbered group by group: output ``o`` is ``[o // outputs, o % outputs]``.
    """
    about = attributes_of(node)
    groups = about.get("group", 1)
    if node.op_type == "Gemm":
        return (weight if about.get("transB") else weight.T)[None, :, :, None]
    kernel = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return kernel.swapaxes(1, 2) if node.op_type == "ConvTranspose" else kernel


def layers_with_bias(stored: StoredGraph) -> Iterator[Any]:
    """Nodes that have weights of their own, and take a bias."""
    for node in stored.graph.node:
        if node.op_type in WITH_BIAS and all(name in stored.tensors for name in node.input[1:] if name):
            yield node
