"""The file itself, in onnxruntime: what it gives is what a reading of it must give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from slim_model.errors import InputError, first_line
from slim_model.from_onnx.model import OnnxModel, Signature


class Original:
    """The file that ``model`` was read from, opened; InputError where onnxruntime does not open it."""

    def __init__(self, model: OnnxModel) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        arrays = {name: np.ascontiguousarray(array) for name, array in model.file.beside.items()}
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        if arrays:
            options.add_external_initializers(list(arrays), values)
        self._model, self._alive = model, values
        try:
            self._session = onnxruntime.InferenceSession(
                model.file.content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own
            raise InputError(f"onnxruntime does not open it: {first_line(error)}.") from error

    def run(self, values: Sequence[Any]) -> list[Tensor]:
        """Its outputs, in the file's order, on a value for each input: a tensor, or a number."""
        feed = {s.name: _array(s, value) for s, value in zip(self._model.signatures, values, strict=True)}
        try:
            results = self._session.run(list(self._model.body.outputs), feed)
        except Exception as error:  # onnxruntime's own
            raise InputError(f"onnxruntime does not run it: {first_line(error)}.") from error
        return [torch.from_numpy(np.array(result)) for result in results]


def _array(signature: Signature, value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        value = torch.full([1] * len(signature.dims or ()), value, dtype=signature.dtype)
    return (value.half() if signature.half else value).numpy()
