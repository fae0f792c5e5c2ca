"""onnxruntime and its execution providers."""

from __future__ import annotations

import functools
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from slim_model.errors import InputError
from slim_model.measuring.runtimes.row import Operator, Runtime, TimedCall, by_kind
from slim_model.measuring.runtimes.with_pytorch import no_cuda

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
_PROFILED_RUNS = 20
_Options = Callable[[int], dict[str, str]]


def _missing(provider: str, package: str) -> str | None:
    if not importlib.util.find_spec("onnxruntime"):
        return f"not installed: pip install {package}"
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return f"not installed: this onnxruntime has no {provider}; pip install {package}"
    return None


def _session(
    path: str | Path, threads: int, provider: str, settings: dict[str, str], profile: Path | None = None
) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(*_asleep_soon(onnxruntime.__version__))
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise InputError(f"cannot measure: onnxruntime could not start its {provider}; its log says why.")
    return session


def _asleep_soon(version: str) -> tuple[str, str]:
    """Threads wait awake for the next run of a loop, as in a program that runs one model, but not into the turn of
    another session (by default for some 60 ms). Before 1.26 all they can do is to fall asleep after each run, which
    costs efficientnet_b0 0.07 ms."""
    if tuple(int(part) for part in version.split(".")[:2]) < (1, 26):
        return "session.force_spinning_stop", "1"
    return "session.intra_op.spin_duration_us", "1000"


def _feed(session: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    names = [value.name for value in session.get_inputs()]
    return {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}


def _host(provider: str, options: _Options, path: str | Path, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    session = _session(path, threads, provider, options(threads))
    feed = _feed(session, inputs)
    return lambda: session.run(None, feed)


def _device(provider: str, options: _Options, path: str | Path, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    """Inputs and outputs stay on the device: the copies to and from it are not timed."""
    import onnxruntime

    session = _session(path, threads, provider, options(threads))
    binding = session.io_binding()
    for name, array in _feed(session, inputs).items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for value in session.get_outputs():
        binding.bind_output(value.name, "cuda")

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _per_op(
    provider: str, options: _Options, paths: Sequence[str | Path], inputs: Sequence[Tensor], threads: int
) -> list[list[Operator]]:
    """From onnxruntime's own profiles: each node's median over the runs."""
    with tempfile.TemporaryDirectory() as folder:
        places = (Path(folder) / f"profile_{number}" for number in range(len(paths)))
        sessions = [
            _session(path, threads, provider, options(threads), place)
            for path, place in zip(paths, places, strict=True)
        ]
        feeds = [_feed(session, inputs) for session in sessions]
        for _ in range(2 * _PROFILED_RUNS):  # the first half warms up
            for session, feed in zip(sessions, feeds, strict=True):
                session.run(None, feed)
        return [_operators(json.loads(Path(session.end_profiling()).read_text())) for session in sessions]


def _operators(events: Sequence[dict[str, Any]]) -> list[Operator]:
    taken: dict[str, tuple[str, list[int]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken.setdefault(event["name"], (event["args"]["op_name"], []))[1].append(event["dur"])
    return by_kind({node: (kind, statistics.median(us[-_PROFILED_RUNS:]) / 1e3) for node, (kind, us) in taken.items()})


def _row(
    name: str,
    device: Literal["cpu", "cuda"],
    provider: str,
    package: str,
    options: _Options = lambda threads: {},
) -> Runtime:
    def available() -> str | None:
        return _missing(provider, package) or (no_cuda() if device == "cuda" else None)

    prepare = functools.partial(_host if device == "cpu" else _device, provider, options)
    return Runtime(name, device, "onnx", available, prepare, PACKAGES, functools.partial(_per_op, provider, options))


ROWS = (
    _row("onnxruntime", "cpu", "CPUExecutionProvider", "onnxruntime"),
    _row("onnxruntime-openvino", "cpu", "OpenVINOExecutionProvider", "onnxruntime-openvino",
         lambda threads: {"device_type": "CPU", "num_of_threads": str(threads), "precision": "FP32"}),
    _row("onnxruntime-cuda", "cuda", "CUDAExecutionProvider", "onnxruntime-gpu"),
    _row("onnxruntime-tensorrt", "cuda", "TensorrtExecutionProvider", "onnxruntime-gpu tensorrt"),
)  # fmt: skip
