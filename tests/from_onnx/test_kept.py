"""Nodes without a row: kept as they are, with all that touches them, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from from_onnx.graphs import INT64, file_of, node, weights
from slim_model.commands.slim import run_job
from slim_model.coupling.couple import couple
from slim_model.errors import InputError
from slim_model.from_onnx.read import read_onnx
from slim_model.loading.load import load
from slim_model.loading.source import Source
from slim_model.progress import say_nothing
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job

STORED = {"a": weights(8, 3, 3, 3), "b": weights(6, 8, 1, 1, seed=1), "c": weights(4, 6, 1, 1, seed=2)}
START = [node("Conv", "x a", "h", "/first"), node("Relu", "h", "r"), node("Conv", "r b", "k", "/second")]


def content(*ends: onnx.NodeProto, stored: dict[str, np.ndarray] | None = None, types: Sequence[str] = ()) -> bytes:
    """Two convolutions, and what stands behind the second."""
    made = file_of(
        [*START, *ends], {"x": ["n", 3, 8, 8]}, ["y"], STORED | (stored or {}), types=dict.fromkeys(types, INT64)
    )
    model = onnx.load_model_from_string(made)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model.SerializeToString()  # type: ignore[no-any-return]


def fused(inputs: str, outputs: str) -> onnx.NodeProto:
    return helper.make_node("FusedMatMul", inputs.split(), outputs.split(), "/fused", domain="com.microsoft", alpha=0.5)


def test_what_has_no_row_stays_in_the_file_with_what_touches_it(tmp_path: Path) -> None:
    pool = node("LpPool", "k", "p", "/pool", kernel_shape=[2, 2], strides=[2, 2], p=3)
    ends = [pool, node("Conv", "p c", "m", "/third"), fused("m w", "y")]
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(content(*ends, stored={"w": weights(3, 5)}))
    report = run_job(Job(Source(path), out, Recipe.of(ratio=0.5, bench=False, multiple_of=1)), say_nothing)
    assert report is not None
    assert [(g["name"], len(g["kept"])) for g in report.groups] == [("a", 4)]
    model = onnx.load(out)
    own = {n.name: n for n in model.graph.node}
    assert own["/pool"].op_type == "LpPool"
    assert own["/fused"].domain == "com.microsoft"
    assert helper.get_attribute_value(own["/fused"].attribute[0]) == 0.5
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    kept = [note for note in report.warnings if "kept as it is" in note]
    assert ["LpPool at node '/pool'" in kept[0], "FusedMatMul at node '/fused'" in kept[1]] == [True, True]
    assert onnxruntime.InferenceSession(out).run(None, {"x": np.zeros((5, 3, 8, 8), np.float32)})[0].shape[0] == 5


def test_a_gru_that_pytorch_does_not_have_is_kept_with_its_weights(tmp_path: Path) -> None:
    stored = {"w": weights(1, 15, 6), "w2": weights(1, 15, 5), "s": np.array([0, 6, -1])}
    ends = [node("Reshape", "k s", "f"), node("Transpose", "f", "t", perm=[2, 0, 1]),
            node("GRU", "t w w2", "y", "cell", hidden_size=5)]  # fmt: skip
    path = tmp_path / "in.onnx"
    path.write_bytes(content(*ends, stored=stored))
    subject = load(path)
    graph = capture(subject.model, subject.arguments)
    assert graph.read_error is not None
    assert graph.read_error < 1e-5
    assert [group.name for group in couple(graph).groups] == ["a"]
    (reason,) = [p for p in couple(graph).pinned if p.name == "b"]
    assert "in cell: y = GRU(t, w, w2)" in reason.where


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (node("Unique", "k", "y", "own"), "how many values it gives follows from the values"),
        (helper.make_node("Foo", ["k"], ["y"], "own", domain="com.microsoft"), "onnxruntime does not open it"),
    ],
)
def test_what_cannot_be_kept_says_why(end: onnx.NodeProto, said: str) -> None:
    model = read_onnx(content(end), "in.onnx", lambda _: b"")
    with pytest.raises(InputError, match="at node 'own' is an operator that slim-model does not know") as error:
        model(torch.randn(1, 3, 8, 8))
    assert "Nor can it be kept as it is" in str(error.value)
    assert said in str(error.value)


def test_nodes_that_draw_or_hold_others_are_refused_when_they_are_read() -> None:
    drawn = [node("RandomNormalLike", "k", "y", "draws")]
    with pytest.raises(InputError, match=r"RandomNormalLike \(1, the first at node 4, 'draws'\)"):
        read_onnx(content(*drawn), "in.onnx", lambda _: b"")


def test_a_gradient_through_a_kept_node_is_refused() -> None:
    model = read_onnx(content(fused("k w", "y"), stored={"w": weights(6, 5)}), "in.onnx", lambda _: b"")
    with pytest.raises(InputError, match="kept as it is in the ONNX file has no gradient"):
        model(torch.randn(1, 3, 8, 8))["y"].sum().backward()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 8, 8))["y"].isfinite().all()
