"""What models are run with. A runtime is one row: whether it can be used here, and how it makes one run."""

from __future__ import annotations

import contextlib
import importlib.metadata

from slim_model.errors import InputError
from slim_model.measuring.runtimes import with_onnxruntime, with_openvino, with_pytorch
from slim_model.measuring.runtimes.row import Operator, Runtime, TimedCall
from slim_model.measuring.runtimes.with_onnxruntime import PACKAGES as ONNXRUNTIME

__all__ = ["ONNXRUNTIME", "RUNTIMES", "Operator", "Runtime", "TimedCall", "known", "usable", "version_of"]

RUNTIMES: dict[str, Runtime] = {
    row.name: row for row in (*with_onnxruntime.ROWS, *with_openvino.ROWS, *with_pytorch.ROWS)
}


def runtime_named(runtime: str | Runtime) -> Runtime:
    """The row of a name (a row stands for itself), or InputError where there is none."""
    if isinstance(runtime, Runtime):
        return runtime
    if runtime not in RUNTIMES:
        raise InputError(f"unknown runtime '{runtime}': choose from {', '.join(RUNTIMES)}.")
    return RUNTIMES[runtime]


def usable_runtime(runtime: str | Runtime) -> Runtime:
    """The row, or InputError where it is unknown or of no use here."""
    row = runtime_named(runtime)
    reason = row.available()
    if reason is not None:
        names = ", ".join(name for name, other in RUNTIMES.items() if other.available() is None)
        raise InputError(f"cannot measure with '{row.name}': {reason}. Usable here: {names}.")
    return row


def version_of(*packages: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None
