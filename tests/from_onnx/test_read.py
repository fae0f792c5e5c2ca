"""What is read of an ONNX file, and what is refused, in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from from_onnx.graphs import INT64, file_of, node, two_convolutions, weights
from slim_model.errors import InputError
from slim_model.from_onnx.model import OnnxModel
from slim_model.from_onnx.names import plain, tensor_names
from slim_model.from_onnx.read import read_onnx
from slim_model.graph.trace import trace
from slim_model.loading.load import load
from slim_model.loading.model_file import open_artifact
from slim_model.loading.source import SourceOptions


def read(content: bytes) -> OnnxModel:
    return read_onnx(content, "in.onnx", lambda _: b"").eval()


def same_as_onnxruntime(content: bytes, *inputs: torch.Tensor) -> None:
    theirs = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(theirs.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        ours = read(content)(*inputs)
    for got, expected in zip(ours.values(), theirs.run(None, feed), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)


def refused(content: bytes) -> str:
    with pytest.raises(InputError) as error:
        read(content)
    return str(error.value)


def test_what_cannot_be_kept_is_named_with_its_places_in_one_message() -> None:
    nodes = [node("Own", "x", "a", "first"), node("Own", "a", "b"), node("Det", "b", "c"), node("Bernoulli", "c", "y")]
    said = refused(file_of(nodes, {"x": [2, 2]}, ["y"]))
    assert "Own (2, the first at node 1, 'first')" in said
    assert "Bernoulli (1, the first at node 4, 'Bernoulli_4')" in said
    assert "Det" not in said  # onnxruntime computes it


def test_operators_of_other_domains_are_refused_whatever_they_are_called() -> None:
    model = onnx.load_model_from_string(file_of([node("Relu", "x", "y", "own")], {"x": [1, 2]}, ["y"]))
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert "com.example.Relu (1, the first at node 1, 'own')" in refused(model.SerializeToString())


def test_quantized_files_are_refused_with_advice() -> None:
    content = file_of([node("DequantizeLinear", "q s", "y", "dq")], {"x": [1]}, ["y"],
                      {"q": np.zeros(3, np.int8), "s": np.float32(0.1)})  # fmt: skip
    said = refused(content)
    assert "is quantized: node 1, 'dq'" in said
    assert "fp32 file" in said


@pytest.mark.parametrize(("opset", "fits"), [(6, False), (7, True), (onnx.defs.onnx_opset_version(), True)])
def test_operator_sets(opset: int, fits: bool) -> None:
    content = file_of([node("Relu", "x", "y")], {"x": [1, 2]}, ["y"], opset=opset)
    if fits:
        assert set(read(content)(torch.ones(1, 2))) == {"y"}
    else:
        assert "operator set 6" in refused(content)


def test_whole_numbers_that_choose_what_is_hot_are_drawn_from_all_of_them(tmp_path: Path) -> None:
    nodes = [node("OneHot", "t depth values", "h"), node("MatMul", "h w", "y")]
    stored = {"depth": np.int64(257), "values": np.array([0, 1], np.float32), "w": weights(257, 4)}
    path = tmp_path / "in.onnx"
    path.write_bytes(file_of(nodes, {"t": [1, 512]}, ["y"], stored, types={"t": INT64}))
    tokens = load(path).arguments.tensors[0]
    assert 200 < int(tokens.max()) < 257
    assert int(tokens.min()) >= 0


def test_a_sequence_as_output_is_refused() -> None:
    content = onnx.load_model_from_string(file_of([node("SequenceConstruct", "x", "y")], {"x": [1]}, ["y"]))
    del content.graph.output[:]
    content.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1]))
    assert "its output 'y'" in refused(content.SerializeToString())


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (("x", "gone"), ("h", "y"), "node 2, 'second', reads 'gone', which nothing before gives"),
        (("k", "h"), ("h", "k"), "node 1, 'first', reads 'k', which nothing before gives"),
        (("x", "h"), ("h", "h"), "h"),
    ],
)
def test_values_that_nothing_gives_or_two_do_are_named(
    inputs: tuple[str, ...], outputs: tuple[str, ...], said: str
) -> None:
    nodes = [node("Relu", inputs[0], outputs[0], "first"), node("Relu", inputs[1], outputs[1], "second")]
    message = refused(file_of(nodes, {"x": [1, 2]}, ["y"]))
    assert message.startswith("is no valid ONNX model: ")
    assert said in message
    assert "_deserialize" not in message


def test_sparse_initialisers_are_made_dense() -> None:
    dense = np.zeros((4, 3), np.float32)
    dense[1, 2], dense[3, 0] = 5, 7
    model = onnx.load_model_from_string(file_of([node("MatMul", "x w", "y")], {"x": [1, 4]}, ["y"]))
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    for places in (np.array([5, 9]), np.array([[1, 2], [3, 0]])):
        del model.graph.sparse_initializer[:]
        indices = numpy_helper.from_array(places, "places")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
        got = read(model.SerializeToString())(torch.eye(4)[:1] + torch.eye(4)[1:2])["y"]
        np.testing.assert_array_equal(got.detach().numpy(), dense[:1] + dense[1:2])


def test_sequences_inside_are_lists() -> None:
    nodes = [
        node("SplitToSequence", "x", "s", axis=1),
        node("SequenceAt", "s one", "b"),
        node("SequenceConstruct", "b x", "t"),
        node("SequenceInsert", "t b zero", "u"),
        node("ConcatFromSequence", "u", "y", axis=1),
    ]
    stored = {"one": np.int64(1), "zero": np.int64(0)}
    same_as_onnxruntime(file_of(nodes, {"x": [2, 3]}, ["y"], stored), torch.randn(2, 3))


def test_a_batch_stays_free_through_computed_shapes() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Unsqueeze", "n axes", "n1"),
        node("Concat", "n1 rest", "shape", axis=0),
        node("Reshape", "x shape", "y"),
    ]
    stored = {"zero": np.int64(0), "axes": np.array([0]), "rest": np.array([-1])}
    model = read(file_of(nodes, {"x": ["n", 3, 4]}, ["y"], stored))
    graph = trace(model, (torch.randn(2, 3, 4),))
    assert graph.dynamic_batch
    assert graph.run((torch.randn(5, 3, 4),))[0].shape == (5, 12)


def _if(condition: str) -> list[onnx.NodeProto]:
    def branch(op: str) -> onnx.GraphProto:
        inside = [helper.make_node(op, ["x"], [op], name=op)]
        return helper.make_graph(inside, op, [], [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)])

    return [
        helper.make_node("If", [condition], ["y"], name="choice", then_branch=branch("Relu"), else_branch=branch("Det"))
    ]


def test_a_branch_that_a_constant_takes_is_in_line_and_the_other_is_not_looked_at() -> None:
    model = read(file_of(_if("c"), {"x": [1, 3]}, ["y"], {"c": np.array(True)}))
    assert torch.equal(model(torch.tensor([[-1.0, 0, 2]]))["y"], torch.tensor([[0.0, 0, 2]]))


def test_a_branch_by_an_input_is_refused_until_the_input_is_a_constant() -> None:
    nodes = [node("Equal", "rate wanted", "c"), *_if("c")]
    content = file_of(nodes, {"x": [1, 3], "rate": []}, ["y"], {"wanted": np.int64(16000)}, types={"rate": INT64})
    model = read(content)
    with pytest.raises(InputError, match=r"If at node 'choice' branches on values .*--input NAME=int=16000"):
        model(torch.ones(1, 3), torch.tensor(16000))
    assert torch.equal(model(-torch.ones(1, 3), 16000)["y"], torch.zeros(1, 3))
    with pytest.raises(InputError, match="Det at node 'Det' is an operator that slim-model does not know"):
        model(torch.ones(1, 3), 8000)


def test_a_loop_of_known_length_is_written_out() -> None:
    inside = [
        helper.make_node("Add", ["carried", "one"], ["next"]),
        helper.make_node("Identity", ["going"], ["again"]),
        helper.make_node("Mul", ["next", "next"], ["square"]),
    ]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        inside, "body",
        [info("i", INT64, []), info("going", TensorProto.BOOL, []), info("carried", TensorProto.FLOAT, None)],
        [info("again", TensorProto.BOOL, []), *(info(name, TensorProto.FLOAT, None) for name in ("next", "square"))],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["times", "", "x"], ["last", "all"], body=body)]
    stored = {"times": np.int64(3), "one": np.float32(1)}
    same_as_onnxruntime(file_of(nodes, {"x": [2]}, ["last", "all"], stored), torch.tensor([1.0, 2.0]))


def test_weights_in_half_precision_are_computed_in_float32() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Cast", "h", "y", to=TensorProto.FLOAT16)]
    types = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    model = read(file_of(nodes, {"x": [1, 2]}, ["y"], {"w": weights(2, 3).astype(np.float16)}, types=types))
    assert model.file.half
    assert model(torch.ones(1, 2))["y"].dtype is torch.float32


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_of_the_file_are_those_of_the_model() -> None:
    model = read(two_convolutions(first="onnx::Conv_12", input_name="input.1", output_name="495"))
    assert dict(model.named_parameters()).keys() == {"onnx::Conv_12", "b.weight"}
    assert model.input_names == ("input.1",)
    assert list(model(torch.randn(1, 3, 6, 6))) == ["495"]


def test_names_hold_nothing_that_could_be_code() -> None:
    assert plain('w") or exit("') == "w___or_exit__"
    assert plain("a\nb") == "a_b"
    names = tensor_names(["w", "w.bias", 'w"', "w'", "", "forward", "x.training", "a..b"])
    assert len(set(names.values())) == len(names)
    model = read(two_convolutions(first='w");raise("'))
    assert set(dict(model.named_parameters())) == {"w___raise__", "b.weight"}


# -- files -------------------------------------------------------------------------------------------------------------


def _outside(folder: Path, location: str) -> Path:
    model = onnx.load_model_from_string(two_convolutions())
    for tensor in model.graph.initializer[:1]:
        content = tensor.raw_data
        onnx.external_data_helper.set_external_data(tensor, location, 0, len(content))
        tensor.ClearField("raw_data")
        (folder / "w.bin").write_bytes(content)
    path = folder / "in.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    subject = load(_outside(tmp_path, "w.bin"))
    assert subject.kind == "onnx"
    expected = read(two_convolutions())(*subject.inputs)["y"]
    assert torch.equal(subject.model(*subject.inputs)["y"], expected)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "link.bin", "", "missing.bin"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = _outside(inner, location)
    (tmp_path / "w.bin").write_bytes((inner / "w.bin").read_bytes())
    (inner / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(InputError, match="keeps weights in"):
        load(path)


def test_weights_beyond_the_end_of_their_file_are_refused(tmp_path: Path) -> None:
    path = _outside(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"1234")
    with pytest.raises(InputError, match=r"lies beyond the end of w\.bin"):
        load(path)


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(two_convolutions()[:-200])
    with pytest.raises(InputError, match=r"in\.onnx: cannot be read as an ONNX model"):
        load(path)


# -- inputs ------------------------------------------------------------------------------------------------------------


def _load(tmp_path: Path, content: bytes, *inputs: str) -> tuple[torch.Tensor, ...]:
    path = tmp_path / "in.onnx"
    path.write_bytes(content)
    return load(path, SourceOptions(inputs=inputs)).inputs


def test_the_file_says_its_inputs(tmp_path: Path) -> None:
    (x,) = _load(tmp_path, two_convolutions(input_name="input.1"))
    assert x.shape == (1, 3, 6, 6)
    (x,) = _load(tmp_path, two_convolutions(input_name="input.1"), "input.1=4x3x6x6")
    assert x.shape == (4, 3, 6, 6)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("1x3x7x6", "input 'x' of the file is n x 3 x 6 x 6:float32"),
        ("y=1x3x6x6", "its inputs are called x"),
        ("x=none", "the file takes n x 3 x 6 x 6:float32 there"),
    ],
)
def test_inputs_that_do_not_fit_the_file_are_refused(tmp_path: Path, typed: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _load(tmp_path, two_convolutions(), typed)


def test_the_type_of_an_input_is_that_of_the_file(tmp_path: Path) -> None:
    content = file_of([node("Gather", "table ids", "y")], {"ids": ["n", "length"]}, ["y"], {"table": weights(10, 4)},
                      types={"ids": INT64})  # fmt: skip
    (ids,) = _load(tmp_path, content, "1x5")
    assert (ids.shape, ids.dtype) == ((1, 5), torch.int64)
    assert int(ids.max()) < 10


def test_an_input_of_unknown_shape_is_asked_for(tmp_path: Path) -> None:
    content = file_of([node("Relu", "x", "y")], {"x": None}, ["y"])
    with pytest.raises(InputError, match=r"'x' is of any shape. Give each, such as --input x="):
        _load(tmp_path, content)
    assert _load(tmp_path, content, "2x4")[0].shape == (2, 4)


# -- values that the user gives ----------------------------------------------------------------------------------------


def test_bench_takes_the_values_of_an_example_by_the_names_of_inputs(tmp_path: Path) -> None:
    path, example = tmp_path / "in.onnx", tmp_path / "example.npz"
    path.write_bytes(file_of([node("Mul", "x s", "y")], {"x": ["n", 2], "s": ["n", 2]}, ["y"]))
    np.savez(example, s=np.array([[5, 6]], np.float32), x=np.array([[1, 2]], np.float32))
    opened = open_artifact(path, SourceOptions(example=example))
    assert [x.tolist() for x in opened.example(1)] == [[[1, 2]], [[5, 6]]]
    assert [x.tolist() for x in opened.example(2)] == [[[1, 2]] * 2, [[5, 6]] * 2]
    np.savez(example, x=np.zeros((1, 2), np.float32))
    with pytest.raises(InputError, match="--example gives x; the file's inputs are x, s"):
        open_artifact(path, SourceOptions(example=example))
