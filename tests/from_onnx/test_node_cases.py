"""ONNX's own test cases of each operator: the row gives what they say. Graphs of one node, computed by numpy."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from slim_model.errors import InputError
from slim_model.from_onnx import rows
from slim_model.from_onnx.read import OLDEST, read_onnx
from slim_model.from_onnx.table import ROWS

MOST = 5
"""Cases of an operator that are run; the others are variants."""
SLOW = ("averagepool", "maxpool", "lppool", "image_decoder", "_image_decoder_data", "ai_onnx_ml")
"""Take seconds to make; pooling is tested in test_rows.py."""
ELSEWHERE = {  # in test_rows.py
    *("AveragePool", "MaxPool", "CastLike", "GRU", "LayerNormalization"),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "ConcatFromSequence", "SplitToSequence"),
}
DIFFERENT = {
    "test_top_k_same_values",  # which of equal values comes first
    "test_top_k_same_values_largest",
    "test_top_k_same_values_2d",
    "test_resize_downsample_scales_linear_align_corners",  # onnxruntime's size is whole
    "test_resize_downsample_scales_cubic_align_corners",
}
WITHOUT_EFFECT = {
    *("auto_pad", "storage_order", "saturate", "round_mode"),
    *("momentum", "hidden_size", "output_sequence", "stash_type", "seed", "is_test", "consumed_inputs", "broadcast"),
    *("softmax_precision", "qk_matmul_output_mode", "q_num_heads", "kv_num_heads"),  # refused by Attention's row
    *("left_window_size", "right_window_size", "value_string", "value_strings", "extrapolation_value", "sparse_value"),
}
"""Attributes that no row reads, because they change nothing here, or because the row refuses those it does not know."""


def _cases() -> dict[str, list[Any]]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(node_cases.__path__):
            if module.name not in SLOW:
                importlib.import_module(f"{node_cases.__name__}.{module.name}")
    found = defaultdict(list)
    for case in node_cases._NodeTestCases:
        if case.model is not None and case.data_sets and len(case.model.graph.node) == 1 and case.name not in DIFFERENT:
            case.model.opset_import[0].version = max(OLDEST, case.model.opset_import[0].version)
            found[case.model.graph.node[0].op_type].append(case)
    return found


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Any]]:
    return _cases()


def _computed(model: onnx.ModelProto, inputs: list[np.ndarray], stored: int) -> list[np.ndarray]:
    """With inputs of up to ``stored`` values, and those of whole numbers, as constants: axes, sizes and the like."""
    made, given = onnx.ModelProto(), []
    made.CopyFrom(model)
    del made.graph.input[:]
    for value, array in zip(model.graph.input, inputs, strict=True):
        if stored and (array.dtype.kind in "iub" or array.size <= stored):
            made.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            made.graph.input.append(value)
            given.append(torch.from_numpy(array))
    given = [x.float() if x.dtype is torch.float16 else x for x in given]
    with torch.no_grad():
        return [x.numpy() for x in read_onnx(made.SerializeToString(), "m.onnx", lambda _: b"")(*given).values()]


def _array(value: Any) -> np.ndarray:
    """An object array where ``value`` is no tensor."""
    if isinstance(value, list):
        return np.array(None, dtype=object)
    return np.array(numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value)


def _result(case: Any, inputs: list[np.ndarray]) -> list[np.ndarray] | None:
    for stored in (0, 8, 10**9):
        try:
            return _computed(case.model, inputs, stored)
        except InputError:
            continue
    return None


@pytest.mark.parametrize("op", sorted(set(ROWS) - ELSEWHERE))
def test_the_row_gives_what_the_case_says(op: str, cases: dict[str, list[Any]]) -> None:
    compared = 0
    for case in cases[op]:
        inputs, outputs = (list(map(_array, values)) for values in case.data_sets[0])
        usual = all(x.dtype.kind in "fiub" for x in (*inputs, *outputs))
        if not usual or 0 in {x.size for x in (*inputs, *outputs)}:
            continue
        got = _result(case, inputs)
        if got is None:
            continue
        half = any(x.dtype == np.float16 for x in (*inputs, *outputs))
        for ours, theirs in zip(got, outputs, strict=False):
            assert ours.shape == theirs.shape, case.name
            np.testing.assert_allclose(
                ours.astype(float), theirs.astype(float), rtol=1e-2 if half else 1e-4, atol=1e-5, err_msg=case.name
            )
        compared += 1
        if compared == MOST:
            break
    assert compared, f"no case of {op} was computed"


def test_every_attribute_is_read_or_known_to_have_no_effect() -> None:
    """An attribute that a newer operator set adds would else be passed over in silence."""
    source = "".join(path.read_text() for path in Path(rows.__path__[0]).glob("*.py"))
    read = set(re.findall(r'"(\w+)"', source))
    missing = {
        f"{op}.{name}"
        for op in ROWS
        for name, attribute in onnx.defs.get_schema(op).attributes.items()
        if name not in read | WITHOUT_EFFECT and attribute.type != onnx.defs.OpSchema.AttrType.GRAPH
    }
    assert not missing
