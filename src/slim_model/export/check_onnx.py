"""The written ONNX file must compute in onnxruntime what the small model computes in PyTorch."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from slim_model.errors import ExportError, ProofError
from slim_model.export.eager_model import EagerModel, difference
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import tensors_among
from slim_model.proof.in_float64 import run_in_float64
from slim_model.proof.tolerance import TOLERANCE, relative_error


def check_onnx(
    path: Path,
    graph: Graph | EagerModel,
    batches: list[tuple[Any, ...]],
    lines: Mapping[str, str] = MappingProxyType({}),
) -> float:
    """onnx.checker, then onnxruntime against the graph or the deciding module; returns the largest relative error.

    ``lines``: the user's line behind each node, by its name. Raises ExportError where the file is not valid or does not
    run, ProofError where it gives other values.
    """
    try_to = functools.partial(_or_refuse, lines=lines)
    try_to(lambda: onnx.checker.check_model(str(path), full_check=True), "PyTorch writes it as ONNX that is not valid")
    session = try_to(lambda: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    # A sigmoid near 0 is compared by its absolute error: that of onnxruntime's kernel is no fault of the file.
    of_sigmoids = _sigmoids(onnx.load(path, load_external_data=False).graph)
    worst = 0.0
    for inputs in batches:
        expected = graph.run(inputs)
        got = try_to(functools.partial(run_onnx, session, inputs))
        if len(expected) != len(got):
            raise ProofError(f"the ONNX file has {len(got)} outputs, the model {len(expected)}.")
        values = [torch.from_numpy(np.asarray(x)) for x in got]
        # Boxes may come in another order, and others may pass a threshold that rounding decides.
        if isinstance(graph, EagerModel):
            worst = max(worst, difference(graph, inputs, expected, values))
        else:
            worst = max([worst, *itertools.starmap(_difference, zip(expected, values, of_sigmoids, strict=True))])
    if worst == math.inf and isinstance(graph, EagerModel):
        raise ProofError("onnxruntime gives other rows (boxes) than PyTorch, more than rounding explains.")
    if TOLERANCE < worst < math.inf and isinstance(graph, Graph):  # rounding, or a fault? float64 tells
        fused = _fused_error(path, graph, batches, session, of_sigmoids)
        if fused <= _FUSED:
            return fused
    if not worst <= TOLERANCE:
        raise ProofError(
            f"onnxruntime differs from PyTorch by {worst:.1e} (relative; allowed {TOLERANCE:.0e}), so the ONNX file "
            "was not written. Please report the model."
        )
    return worst


def _fused_error(
    path: Path,
    graph: Graph,
    batches: list[tuple[Any, ...]],
    session: onnxruntime.InferenceSession,
    of_sigmoids: list[bool],
) -> float:
    """What onnxruntime's fused kernels are off by from ``graph`` in float64; inf where the file without any fusion is
    not within the tolerance, so that rounding is not all."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fused = 0.0
    for inputs in batches:
        truth = run_in_float64(graph, inputs)
        exact, usual = (
            max(_difference(a, torch.from_numpy(np.asarray(b)), s)
                for a, b, s in zip(truth, run_onnx(one, inputs), of_sigmoids, strict=True))
            for one in (plain, session)
        )  # fmt: skip
        fused = max(fused, usual) if exact <= TOLERANCE else math.inf
    return fused


_FUSED = 3 * TOLERANCE
"""What the fused kernels of onnxruntime may be off by where the file without them is within the tolerance. Of PP-OCR's
recognition at 0.25 it is 1.4e-4 with them and 3.1e-5 without (1.31)."""
_SIGMOID_ERROR = 2.5e-7
"""onnxruntime's sigmoid (1.31) is off by up to 1.2e-7 also where it is nearly 0; PyTorch's is right to 1e-7 of
the value. Scores that are all below a thousandth then differ by more than the tolerance, and nothing is wrong."""
_MOVES = {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
_REDUCTIONS = {"ReduceMax", "ReduceMean", "ReduceMin"}
"""Of values that are each off by so much they are off by no more."""


def _difference(expected: Tensor, got: Tensor, is_sigmoid: bool) -> float:
    """The relative error; of a sigmoid the absolute one (its range is 1) where that is its kernel's."""
    error = relative_error(expected, got)
    if is_sigmoid and TOLERANCE < error < math.inf and (apart := float((expected - got).abs().max())) < _SIGMOID_ERROR:
        return apart
    return error


def _sigmoids(graph: onnx.GraphProto) -> list[bool]:
    """Of each output: whether it is a sigmoid, or several, moved about, or a mean of some."""
    makers = {name: node for node in graph.node for name in node.output}

    def is_sigmoid(name: str) -> bool:
        node = makers.get(name)
        if node is None or node.op_type not in _MOVES | _REDUCTIONS:
            return node is not None and node.op_type == "Sigmoid"
        moved = node.input if node.op_type == "Concat" else node.input[:1]
        return all(map(is_sigmoid, moved))

    return [is_sigmoid(output.name) for output in graph.output]


def _or_refuse(
    action: Callable[[], Any], what: str = "onnxruntime does not run it as ONNX", *, lines: Mapping[str, str]
) -> Any:
    try:
        return action()
    except Exception as error:  # onnxruntime's own and the checker's, which have no common root
        said = " ".join(str(error).split())
        line = next((line for name, line in lines.items() if re.search(rf"\b{re.escape(name)}\b", said)), "")
        advice = f" It comes from {line}: write that in another way." if line else ""
        raise ExportError(f"{what}: {said[:300].rstrip('.')}.{advice}") from error


def run_onnx(session: onnxruntime.InferenceSession, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    tensors = tensors_among(inputs)
    feed = {i.name: t.detach().cpu().numpy() for i, t in zip(session.get_inputs(), tensors, strict=False)}
    return list(session.run(None, feed))
