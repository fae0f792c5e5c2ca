"""Samples -> the range of every activation, by onnxruntime's own calibrators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from slim_model.quantizing.float_model import BETWEEN, STATIC, quiet

Feed = dict[str, np.ndarray]
"""The inputs of one run by name."""
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterator[Feed]) -> None:
        self.feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def ranges(model: Path, feeds: Iterable[Feed], calibration: str) -> Any:
    """The ranges (onnxruntime's ``TensorsData``) that ``calibration``, a name of CALIBRATIONS, finds on ``feeds``. The
    activations of one feed are in memory at once. Constants of a histogram are those of onnxruntime."""
    with quiet():
        calibrator = create_calibrator(
            model,
            [*STATIC, *BETWEEN],
            augmented_model_path=str(model.with_name(f"{calibration}.onnx")),
            calibrate_method=_METHODS[calibration],
            extra_options={"symmetric": False, "percentile": 99.999},
        )
        for feed in feeds:
            calibrator.collect_data(_Reader(iter([feed])))
        return calibrator.compute_data()
