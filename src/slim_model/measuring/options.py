"""How latency is measured."""

from __future__ import annotations

from dataclasses import dataclass

from slim_model.errors import InputError
from slim_model.options import check_choices, option

DEVICES = ("cpu", "cuda")
RUNTIME_NAMES = (
    "onnxruntime",
    "onnxruntime-openvino",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "openvino",
    "pytorch",
    "pytorch-compile",
    "pytorch-cuda",
    "pytorch-compile-cuda",
    "pytorch-cudagraph",
)
"""The rows of ``measuring.runtimes.RUNTIMES``, for help texts that are read without PyTorch."""


@dataclass(frozen=True, slots=True)
class MeasuringOptions:
    """``bench``: whether the command measures. ``threads``: of the measured runs. ``device``: where latency is
    measured, and the model trained."""

    bench: bool = option(True, "Measure latency, dense and slim in turns.", basic=True)
    threads: int = option(1, "Threads of the measured runs.", least=1)
    device: str = option("cpu", "Where latency is measured, and the model trained.", choices=DEVICES)

    def __post_init__(self) -> None:
        check_choices(self)
        if self.threads < 1:
            raise InputError(f"threads {self.threads} is not a number of threads; it starts at 1.")
