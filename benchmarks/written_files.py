"""The ONNX files of a compilation, dense and small: what is recorded of them, and their latency in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from slim_model.export.check_onnx import check_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.measuring.timing import compare
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches


def written(compiled: Compiled, dense: Path, small: Path) -> dict[str, Any]:
    """Both files, and for a row of results: multiply-adds, widths, branches that are gone, how far onnxruntime is from
    PyTorch."""
    dense.parent.mkdir(parents=True, exist_ok=True)
    to_onnx(compiled.dense, dense, opset=None, metadata={})
    to_onnx(compiled.small, small, opset=None, metadata={})
    return {
        "macs": [compiled.dense_cost.macs, compiled.slim_cost.macs],
        "allocate": compiled.met.allocate if compiled.met else None,
        "widths": compiled.plan.widths,
        "silent": [compiled.coupling.groups[number].name for number in compiled.plan.silent],
        "onnx_max_rel_error": check_onnx(small, compiled.small, onnx_batches(compiled.small, 0)),
    }


def in_turns(dense: Path, small: Path, sample: Sequence[Tensor]) -> dict[str, Any]:
    """Latency on one thread, in turns: medians, speedup and its 95 % interval."""
    return asdict(compare("onnxruntime", dense, small, sample, threads=1, budget_s=10))
