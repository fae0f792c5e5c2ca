"""What was read from an ONNX file must compute what onnxruntime does with that file."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from slim_model.errors import ProofError
from slim_model.from_onnx.model import OnnxModel
from slim_model.from_onnx.original import Original
from slim_model.graph.graph import Graph, first_sample
from slim_model.graph.other_inputs.looked_up import looked_up
from slim_model.graph.other_inputs.other_values import other_values
from slim_model.proof.tolerance import TOLERANCE, largest_abs, relative_error

HALF_TOLERANCE = 2e-2
"""For files that compute in float16: eight of its steps, some rounding at each layer."""
_KERNEL_ERROR = 2.5e-7
"""Absolute, of onnxruntime's sigmoid where its results are nearly 0."""


def check_reading(model: OnnxModel, graph: Graph) -> float:
    """The largest relative difference between ``graph``, which was read from a file, and onnxruntime on that file, over
    two inputs: the example, and other values. Raises InputError where onnxruntime does not run the file, ProofError
    where the graph computes something else."""
    original, worst = Original(model), 0.0
    allowed = HALF_TOLERANCE if model.file.half else TOLERANCE
    for tensors in _inputs(graph):
        expected = original.run(graph.arguments.filled(tensors).args)
        got = graph.run(tensors)
        for name, theirs, ours in zip(graph.outputs.names, expected, got, strict=True):
            error = _difference(theirs, ours)
            if not error <= allowed:
                raise ProofError(
                    f"what was read of the file differs from onnxruntime on it by {error:.1e} at its output '{name}' "
                    f"(relative; allowed {allowed:.0e}). Nothing was written. Please report the file."
                )
            worst = max(worst, error)
    return worst


def _inputs(graph: Graph) -> Iterator[tuple[Tensor, ...]]:
    """The example as a batch of one, and other values of that shape."""
    example, generator = first_sample(graph), torch.Generator().manual_seed(1)
    spans = looked_up(lambda *inputs: graph.run(inputs), example)
    yield example
    yield tuple(other_values(x, tuple(x.shape), span, generator) for x, span in zip(example, spans, strict=True))


def _difference(theirs: Tensor, ours: Tensor) -> float:
    theirs = theirs.float() if theirs.is_floating_point() and theirs.itemsize < 4 else theirs
    error = relative_error(theirs, ours)
    if TOLERANCE < error < math.inf and (apart := largest_abs(theirs - ours)) < _KERNEL_ERROR:
        return apart
    return error
