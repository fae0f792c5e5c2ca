"""Models with data-dependent control flow (NMS): the eager module is exported and run, not its graph.

The traced graph is valid for one input only: it has the sizes of the run that it follows in it as numbers.
TorchScript's tracer keeps such sizes as values where a module takes care of that, as detection models do, so that the
ONNX file has as many boxes as are found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn

from slim_model.calling.flat_forward import flat_forward
from slim_model.calling.outputs import output_tensors
from slim_model.errors import ExportError, first_line
from slim_model.graph.autocast import in_float32
from slim_model.graph.graph import Graph
from slim_model.graph.modes import eval_mode, silence_torch
from slim_model.proof.tolerance import TOLERANCE, relative_error


@dataclass(frozen=True, slots=True)
class EagerModel:
    """``module`` computes what ``graph`` does, and decides for itself."""

    module: nn.Module
    graph: Graph

    def run(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """Outputs (flattened, tensors only) of the module on flattened ``inputs``."""
        with eval_mode(self.module), in_float32():
            return output_tensors(self.graph.call(self.module, inputs))


def runnable_form(graph: Graph, module: nn.Module) -> Graph | EagerModel:
    """What is written and run of a model: its graph, unless that holds for the decisions of one run only."""
    return EagerModel(module, graph) if graph.decisions else graph


def difference(model: EagerModel, inputs: tuple[Any, ...], expected: list[Tensor], got: list[Tensor]) -> float:
    """The largest relative error of ``got`` against ``expected``, which ``model`` gives, boxes in any order.

    Of two boxes with nearly the same score either may come first, or suppress the other, or be the last that is kept:
    rounding decides. So as many rows may have no equal as where the model runs on disturbed inputs, while its other
    rows do not differ by far more than here; and no more than half of all: where rounding decides nearly everything,
    nothing would be compared. With more the error is infinite.
    """
    lost, error = _apart(expected, got)
    if lost > max((len(x) for x in expected if x.dim()), default=0):
        return math.inf
    return error if not lost or error == math.inf or _rounding_loses(model, inputs, expected, lost, error) else math.inf


_TIMES = 8
_DISTURBANCES = (1e-6, 1e-5, 1e-4)


def _rounding_loses(
    model: EagerModel, inputs: tuple[Any, ...], expected: list[Tensor], lost: int, error: float
) -> bool:
    """As many rows as ``lost``, before the others differ by far more than ``error``."""
    generator = torch.Generator().manual_seed(0)
    for size in _DISTURBANCES:
        runs = (model.run(tuple(_disturbed(x, size, generator) for x in inputs)) for _ in range(_TIMES))
        rows, errors = zip(*(_apart(expected, other) for other in runs), strict=True)
        if lost <= max(rows):
            return True
        if max(errors) > 10 * error:
            return False
    return False


def _disturbed(x: Any, size: float, generator: torch.Generator) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x * (1 + size * torch.randn(x.shape, generator=generator).to(x))


def _apart(expected: list[Tensor], got: list[Tensor]) -> tuple[int, float]:
    """Rows of either side without an equal on the other, and the largest relative error of all else. Outputs with as
    many rows as the first have their rows in common."""
    if [x.shape[1:] for x in expected] != [x.shape[1:] for x in got]:
        return 0, math.inf
    count = len(expected[0]) if expected[0].dim() else None
    joined = [number for number, x in enumerate(expected) if x.dim() and len(x) == count]
    others = [relative_error(a, b) for n, (a, b) in enumerate(zip(expected, got, strict=True)) if n not in joined]
    if not joined or len({len(got[number]) for number in joined}) != 1:
        return 0, max((relative_error(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
    if not count or not len(got[joined[0]]):
        return (count or 0) + len(got[joined[0]]), max(others, default=0.0)
    scales = [float(expected[number].abs().max()) or 1.0 for number in joined]
    mine, theirs = (
        torch.cat([x[n].reshape(len(x[n]), -1).double() / s for n, s in zip(joined, scales, strict=True)], 1)
        for x in (expected, got)
    )
    near = torch.cdist(mine, theirs, p=math.inf)
    nearest = torch.cat([near.amin(0), near.amin(1)])
    equal = nearest <= TOLERANCE
    return int((~equal).sum()), max([*others, *nearest[equal].tolist()], default=0.0)


def by_torchscript(model: EagerModel, path: Path, opset: int | None) -> onnx_ir.Model:
    """The ONNX model that PyTorch's older exporter writes at ``path``."""
    graph, module = model.graph, model.module
    try:
        with eval_mode(module), in_float32(), silence_torch(), flat_forward(module, graph.arguments):
            torch.onnx.export(module, graph.inputs, str(path), dynamo=False, opset_version=opset)
    except Exception as error:  # of the exporter or of the user's forward, which have no common root
        raise ExportError(
            "the model makes decisions from its values, so that the graph of one run would be wrong for other inputs, "
            f"and the exporter that keeps them does not write it: {first_line(error).rstrip('.')}."
        ) from error
    return onnx_ir.load(path)
