"""A prepared fp32 model in one form of int8, as a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from slim_model.errors import ExportError, first_line
from slim_model.quantizing.float_model import BETWEEN, DYNAMIC, STATIC, FloatModel, quiet
from slim_model.quantizing.forms import Form

_TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}


def build(
    model: FloatModel, form: Form, ranges: Any, place: Path, *, fp32: Collection[str], metadata: Mapping[str, str]
) -> None:
    """Write ``model`` in ``form`` to ``place``; the nodes ``fp32`` and the tail stay as they are. ``ranges``: of
    ``calibrate.ranges``, None where the form is dynamic. The same arguments give the same bytes. Raises ExportError
    where onnxruntime cannot do it."""
    excluded = [*model.tail, *fp32]
    try:
        with quiet():
            write = _write_dynamic if form.dynamic else _write_static
            write(model, form, ranges, place, excluded)
    except Exception as error:  # the quantiser's own and numpy's, which have no common root
        raise ExportError(
            f"onnxruntime's quantiser cannot write this model as int8: {first_line(error, named=True)}. "
            "Use the fp32 file."
        ) from error
    written = onnx.load(place)
    del written.metadata_props[:]
    onnx.helper.set_model_props(written, dict(metadata))
    onnx.save(written, place)


def _write_static(model: FloatModel, form: Form, ranges: Any, place: Path, excluded: list[str]) -> None:
    quantizer = QDQQuantizer(
        onnx.load(model.path),
        form.per_channel,
        form.seven_bits,
        _TYPES[form.weights],
        _TYPES[form.activations],
        ranges,
        [],
        excluded,
        [*STATIC, *BETWEEN],
        {"ActivationSymmetric": False, "WeightSymmetric": form.weights == "s8"},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(place), False)


def _write_dynamic(model: FloatModel, form: Form, ranges: Any, place: Path, excluded: list[str]) -> None:
    quantize_dynamic(
        model.path,
        place,
        op_types_to_quantize=list(DYNAMIC),
        per_channel=form.per_channel,
        reduce_range=form.seven_bits,
        weight_type=_TYPES[form.weights],
        nodes_to_exclude=[*excluded, *(f"{name}_MatMul" for name in excluded)],  # what it makes of a Gemm
    )
