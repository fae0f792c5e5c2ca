"""The traced forward pass: the value that all later stages work on."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from slim_model.calling.arguments import Arguments
from slim_model.calling.draws import Means
from slim_model.calling.outputs import OutputForm
from slim_model.errors import whole_statement
from slim_model.graph.decisions import Decided, Decision
from slim_model.graph.free_axes import FreeAxes
from slim_model.graph.tensor_trees import copy_tensors, tensors_among

_TORCH = os.path.dirname(torch.__file__) + os.sep
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>.*)')


@dataclass(frozen=True, slots=True)
class PlainLayer:
    """What ``torch.nn`` layer the module called ``path`` is: its ``kind`` (``"Conv2d"``), its ``options`` (stride,
    padding, ...; sizes follow from its weight), and whether it has a ``bias`` (of that name)."""

    path: str
    kind: str
    options: dict[str, Any]
    bias: bool


@dataclass(frozen=True, slots=True)
class Folded:
    """A stored tensor ``name`` that holds what the model computes from the tensors ``sources`` alone, at the line
    ``where``; ``shape`` is that in the dense model. ``layer``: what the module around it is besides, if that is one
    plain layer."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    where: str
    layer: PlainLayer | None = None


@dataclass(frozen=True, slots=True)
class Factor:
    """One layer of a ``Factored`` one: the ``node`` that computes it, its stored ``weight`` and ``bias`` (or none), the
    ``shape`` of the weight before any rank was removed, and what a convolution is given besides (stride, ...)."""

    node: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    options: dict[str, Any]

    @property
    def grouped(self) -> bool:
        """It makes terms of each input alone."""
        return self.options.get("groups", 1) > 1


@dataclass(frozen=True, slots=True)
class Factored:
    """A layer that is written as several in a row whose product it is, ``factors``. ``weight`` is the name that its
    own weight had, of this ``shape``; ``bias``: whether it had one; ``form``: a row of ``factoring.forms``;
    ``options``: what the one convolution was given besides."""

    weight: str
    shape: tuple[int, ...]
    bias: bool
    form: str
    options: dict[str, Any]
    factors: tuple[Factor, ...]

    @property
    def path(self) -> str:
        """The name of the layer; of a bare weight its own."""
        return self.weight.removesuffix(".weight")

    def with_groups(self, left: Callable[[Factor], int]) -> Factored:
        """With the groups that are ``left`` of grouped factors."""
        return dataclasses.replace(
            self,
            factors=tuple(
                dataclasses.replace(factor, options=factor.options | {"groups": left(factor)})
                if factor.grouped
                else factor
                for factor in self.factors
            ),
        )


@dataclass(frozen=True, slots=True)
class Graph:
    """The traced forward pass.

    ``module.graph`` takes tensors, then inputs, as placeholders. ``owners`` maps a placeholder to the qualified name
    of the parameter, buffer or constant it stands for; ``tensors`` holds these by that name; the remaining
    placeholders are the user's inputs, whose examples are ``inputs`` (flattened, in order). A graph that follows one
    run (``program`` is None) holds for the ``decisions`` of that run, by the names of nodes: they are given to any run.
    ``free``: the axes of the inputs that may have any size. ``arguments``: what the model is called with, in the user's
    own nest; ``input_names``: those of its tensors; ``heads``: the parameters that its positional arguments stand for;
    ``outputs``: how it nests what it returns. ``parameter_names``: those of ``tensors`` that are trained (the others
    are buffers and constants). ``folded``: those of ``tensors`` that the model computes. ``in_means``: it has the mean
    of what the model draws at random. ``factored``: layers that are written as several in a row. ``read_error``: how
    far the graph is from onnxruntime on the ONNX file that it was read from, relative; None where from none.
    """

    module: fx.GraphModule
    owners: dict[str, str]
    tensors: dict[str, Tensor]
    inputs: tuple[Any, ...]
    program: ExportedProgram | None
    free: FreeAxes = field(default_factory=FreeAxes)
    warnings: tuple[str, ...] = ()
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    arguments: Arguments = field(default_factory=Arguments)
    input_names: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    outputs: OutputForm = field(default_factory=OutputForm)
    parameter_names: frozenset[str] = frozenset()
    folded: tuple[Folded, ...] = ()
    in_means: bool = False
    factored: tuple[Factored, ...] = ()
    read_error: float | None = None

    @property
    def dynamic_batch(self) -> bool:
        """Whether the batch, axis 0, may have any size."""
        return bool(self.free.batch())

    @property
    def nodes(self) -> Iterator[fx.Node]:
        return iter(self.module.graph.nodes)

    def with_tensors(self, tensors: dict[str, Tensor]) -> Graph:
        return dataclasses.replace(self, tensors=tensors)

    def copy(self) -> Graph:
        """The same graph over the same tensors, with nodes of its own that a stage may edit before it hands it on."""
        nodes, _ = copy_graph(self.module.graph)
        return dataclasses.replace(self, module=fx.GraphModule(self.module, nodes))

    def bind(self, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
        """What each placeholder stands for. Inputs are copied: the graph may write in place."""
        given = iter(copy_tensors(inputs))
        return {
            node: self.tensors[self.owners[node.name]] if node.name in self.owners else next(given)
            for node in self.nodes
            if node.op == "placeholder"
        }

    def call(self, model: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """What ``model``, of the user's own class, returns for flattened ``inputs``, which it may write to."""
        with Means() if self.in_means else nullcontext():
            return self.arguments.filled(copy_tensors(inputs)).call(model)

    def run(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """Outputs (flattened, tensors only) of the graph on flattened ``inputs``."""
        with torch.no_grad():
            result = Decided(self.module, self.decisions).run(initial_env=self.bind(inputs))
        return tensors_among(result)


def first_sample(graph: Graph) -> tuple[Any, ...]:
    """The example input as a batch of one where the batch is free; else as it is."""
    shapes = shapes_at(graph, dict.fromkeys(graph.free.batch(), 1))
    return tuple(x[: shape[0]] if shape else x for x, shape in zip(graph.inputs, shapes, strict=True))


def shapes_at(graph: Graph, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The shapes of the inputs where free axes have these ``sizes``; of what is no tensor none."""
    return [graph.free.shape(i, x, sizes) if isinstance(x, Tensor) else () for i, x in enumerate(graph.inputs)]


def describe_inputs(inputs: tuple[Any, ...]) -> str:
    """``'2x3x224x224:float32'``: inputs as the user would type them."""
    return ", ".join(
        f"{'x'.join(map(str, x.shape)) or 'scalar'}:{str(x.dtype).removeprefix('torch.')}"
        for x in tensors_among(inputs)
    )


def source_line(node: fx.Node) -> str:
    """``'model.py:42 in forward: x = self.conv(x)'``: the user's own line that made ``node``; '' where unknown."""
    return last_line_in(node.meta.get("stack_trace") or "")


def last_line_in(stack_trace: str) -> str:
    """The innermost line of a stack trace that is the user's own, as ``source_line`` gives it; '' where unknown."""
    frames = list(_FRAME.finditer(stack_trace))
    frames = [f for f in frames if not f["file"].startswith(_TORCH)] or frames
    if not frames:
        return ""
    frame = frames[-1]
    code = whole_statement(frame["file"], int(frame["line"]), frame["code"])
    return f"{os.path.basename(frame['file'])}:{frame['line']} in {frame['function']}: {code}"


def name_in(stack_trace: str) -> str:
    """What the innermost line of a stack trace lies in: a function, or the node of a file; '' where unknown."""
    frames = list(_FRAME.finditer(stack_trace))
    return frames[-1]["function"] if frames else ""


def module_path(node: fx.Node) -> str:
    """Qualified name of the submodule whose forward made ``node``; '' for the model itself."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of ``graph`` whose nodes have the same names, and the copy of each node (but the output)."""
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    ends: Any = result.graph_copy(graph, copies, return_output_node=True)
    values, original = ends
    result.output(values).meta = dict(original.meta)
    for node, copy in copies.items():
        copy.name = node.name
    return result, copies
