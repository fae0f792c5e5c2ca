"""Check that the traced graph computes what the model computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from slim_model.calling.outputs import output_tensors
from slim_model.errors import InputError, ProofError, first_line
from slim_model.graph.decisions import Decided, Decision
from slim_model.graph.fixed_axes import line_of_error
from slim_model.graph.graph import Graph, first_sample
from slim_model.graph.other_inputs.other_sizes import resized
from slim_model.graph.tensor_trees import tensors_among
from slim_model.proof.tolerance import TOLERANCE, relative_error
from slim_model.simplifying.take_means import remedy_for_draw


def check_trace(model: nn.Module, graph: Graph) -> tuple[str, ...]:
    """Compare the traced graph with the model itself on the example input.

    Returns what the user should be warned of. Raises InputError where the model gives other outputs each time,
    ProofError where the graph differs from it.
    """
    if graph.free.others:
        _check_other_sizes(model, graph)
    if graph.outputs.numbers:
        _check_numbers(model, graph)
    # With a free batch one sample is the harder case: export would specialise sizes 0 and 1.
    single = first_sample(graph)
    if graph.dynamic_batch and _trace_error(model, graph, single) <= TOLERANCE:
        return ()
    error = _trace_error(model, graph, graph.inputs)
    if error <= TOLERANCE:
        return () if not graph.dynamic_batch else (_OTHER_AT_ONE,)
    # Randomness in the model would look like a fault of the trace: the model is compared with itself.
    again = [_outputs(model, graph, graph.inputs) for _ in range(2)]
    if not _largest(*again) <= TOLERANCE:
        raise InputError(
            "the model gives other outputs when it is run again on the same input, so nothing can be proven of it. "
            f"{_remedy(graph)}"
        )
    raise ProofError(
        f"the traced graph differs from the model by {error:.1e} (relative; allowed {TOLERANCE:.0e}). Nothing was "
        "written. Give a .pt2 made by torch.export, or report the model."
    )


def _check_numbers(model: nn.Module, graph: Graph) -> None:
    """A number that the model returns may follow from sizes, and not from values: the graph has that of the example."""
    generator = torch.Generator().manual_seed(0)
    other = tuple(
        x + torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x.flip(0) if x.dim() else x
        for x in graph.inputs
    )
    try:
        expected = _outputs(model, graph, other)
    except Exception:  # a forward may refuse values
        return
    for name, number, got in zip(graph.outputs.names, expected, graph.run(other), strict=True):
        if name in graph.outputs.numbers and not relative_error(number, got) <= TOLERANCE:
            raise InputError(
                f"the number that the model returns as its output '{name}' follows from the values of its inputs, and "
                "a file would have that of the example. Let forward return it as a tensor, without .item(), int() or "
                "float()."
            )


def _check_other_sizes(model: nn.Module, graph: Graph) -> None:
    """The same at other sizes of free axes. Raises InputError where the model itself does not take them."""
    flat = resized(graph, graph.free.elsewhere(batch=1))
    said = " and ".join(f"{name} {size}" for name, size in graph.free.others.items())
    try:
        expected = _outputs(model, graph, flat)
    except Exception as error:  # the user's forward, on sizes that it was not given with
        raise InputError(
            f"the model traces with free axes, and does not run itself with {said}: {first_line(error, named=True)} "
            f"(at {line_of_error(error)}). Leave them out of dynamic."
        ) from error
    apart = _largest(expected, graph.run(flat))
    if not apart <= TOLERANCE:
        raise InputError(
            f"with {said} the traced graph differs from the model by {apart:.1e} (relative; allowed {TOLERANCE:.0e}): "
            "it does another thing at other sizes. Leave them out of dynamic."
        )


def _remedy(graph: Graph) -> str:
    node = _random_node(graph)
    if node is None:
        return "Make its forward deterministic in eval mode (random numbers, dropout left on, a counter?)."
    return remedy_for_draw(node)


def _random_node(graph: Graph) -> fx.Node | None:
    """The first operator that draws, of those whose values differ between two runs."""
    runs = [_Drawn(graph.module, graph.decisions) for _ in range(2)]
    with torch.no_grad():
        for run in runs:
            run.run(initial_env=graph.bind(graph.inputs))
    first, second = (run.values for run in runs)
    return next((node for node in first if not _largest(first[node], second[node]) <= TOLERANCE), None)


class _Drawn(Decided):
    """Remembers what operators give that draw random numbers."""

    def __init__(self, module: fx.GraphModule, decisions: Mapping[str, Decision]) -> None:
        super().__init__(module, decisions)
        self.values: dict[fx.Node, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()):
            self.values[n] = [x.clone() for x in tensors_among(result)]
        return result


_OTHER_AT_ONE = (
    "the model itself treats a batch of one in another way than larger batches (a squeeze, or a branch on the batch "
    "size?); the small model treats it as it does larger ones. With --static-batch and an example of one sample it is "
    "traced at one"
)


def _trace_error(model: nn.Module, graph: Graph, inputs: tuple[Any, ...]) -> float:
    """The largest relative error over the outputs; infinite where the model does not run or has others."""
    try:
        expected = _outputs(model, graph, inputs)
    except Exception:  # the user's forward, on a batch size that it was not given with
        return math.inf
    return _largest(expected, graph.run(inputs))


def _outputs(model: nn.Module, graph: Graph, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Without PyTorch's fast path for attention, which no tracer sees: it leaves out positions that are padding."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return output_tensors(graph.call(model, inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _largest(expected: list[Tensor], got: list[Tensor]) -> float:
    if len(expected) != len(got):
        return math.inf
    return max((relative_error(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
