"""OpenVINO's own runtime, on the CPU."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from slim_model.measuring.runtimes.row import Operator, Runtime, TimedCall, by_kind

_PROFILED_RUNS = 20


def _missing() -> str | None:
    return None if importlib.util.find_spec("openvino") else "not installed: pip install openvino"


def _request(path: str | Path, inputs: Sequence[Tensor], threads: int, *, counting: bool = False) -> Any:
    """A request with its inputs set, compiled for their shapes.

    float32 is asked for: where the processor has bfloat16 OpenVINO would use that, and compare two precisions.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    arrays = [value.detach().cpu().numpy() for value in inputs]
    model.reshape({i: array.shape for i, array in enumerate(arrays)})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": counting,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    for i, array in enumerate(arrays):
        request.set_input_tensor(i, openvino.Tensor(array))
    return request


def _prepare(path: str | Path, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    request = _request(path, inputs, threads)
    return lambda: request.infer(share_outputs=True)


def _per_op(paths: Sequence[str | Path], inputs: Sequence[Tensor], threads: int) -> list[list[Operator]]:
    """From OpenVINO's performance counters: each node's median over the runs."""
    requests = [_request(path, inputs, threads, counting=True) for path in paths]
    taken: list[dict[str, tuple[str, list[float]]]] = [{} for _ in paths]
    for _ in range(2 * _PROFILED_RUNS):  # the first half warms up
        for request, own in zip(requests, taken, strict=True):
            request.infer()
            for node in request.get_profiling_info():
                if node.status == node.Status.EXECUTED:
                    own.setdefault(node.node_name, (node.node_type, []))[1].append(node.real_time.total_seconds() * 1e3)
    return [
        by_kind({name: (kind, statistics.median(ms[-_PROFILED_RUNS:])) for name, (kind, ms) in own.items()})
        for own in taken
    ]


ROWS = (Runtime("openvino", "cpu", "onnx", _missing, _prepare, ("openvino",), _per_op),)
