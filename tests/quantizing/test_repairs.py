"""Repairs change nothing in fp32, and bring int8 nearer to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx_nets import SIZE, classifier, depthwise, linear, transposed
from test_quantize import noise, run, samples_of

from slim_model.quantizing.correct_biases import correct_biases, corrections
from slim_model.quantizing.equalise import equalise
from slim_model.quantizing.float_model import FloatModel, prepare
from slim_model.quantizing.forms import CALIBRATIONS, FORMS, REPAIRS
from slim_model.quantizing.variants import Variant, Workshop

STATIC_FORMS = [name for name, form in FORMS.items() if not form.dynamic]


def plain_session(place: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(place), options)


def weights_of(place: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(place).graph.initializer}


def equalised(source: Path) -> FloatModel:
    model = equalise(prepare(source, source.parent))
    assert model is not None
    return model


@pytest.mark.parametrize("net", ["depthwise", "flattened", "transposed", "linear"])
def test_an_equalised_net_gives_the_same_bits(tmp_path: Path, net: str) -> None:
    place = tmp_path / "in.onnx"
    source = {
        "depthwise": lambda: depthwise(place, spread=100),
        "flattened": lambda: depthwise(place, spread=100, flattened=True),
        "transposed": lambda: transposed(place),
        "linear": lambda: linear(place),
    }[net]()
    size = {"transposed": (4, 8, 8), "linear": (20,)}.get(net, SIZE)
    x = np.random.default_rng(0).normal(size=(5, *size)).astype(np.float32)
    before = plain_session(source).run(None, {"x": x})[0]
    if net == "linear":  # both layers have one bias: scaled in one, it would be wrong in the other
        assert equalise(prepare(source, tmp_path)) is None
        return
    model = equalised(source)
    np.testing.assert_array_equal(plain_session(model.path).run(None, {"x": x})[0], before)
    old, new = weights_of(source), weights_of(model.path)
    assert not np.array_equal(new["first.weight"], old["first.weight"])


def test_channels_are_written_as_they_are_read(tmp_path: Path) -> None:
    """Within the factor of sqrt 2 to either side that rounding to powers of two leaves."""
    new = weights_of(equalised(depthwise(tmp_path / "in.onnx", spread=1000)).path)
    first = np.abs(new["first.weight"]).max((1, 2, 3))
    middle = np.abs(new["depthwise.weight"]).max((1, 2, 3))
    second = np.abs(new["second.weight"]).max((0, 2, 3))
    for written, read in ((np.maximum(first, np.abs(new["first.bias"])), middle),
                          (np.maximum(middle, np.abs(new["depthwise.bias"])), second)):  # fmt: skip
        assert np.abs(np.log2(written / read)).max() <= 2.01  # each side moves by half a step at most, twice
    assert np.abs(np.log2(first / np.median(first))).max() < 6 < np.log2(1000)


def test_a_clip_and_a_second_reader_end_the_chain(tmp_path: Path) -> None:
    source = depthwise(tmp_path / "in.onnx", spread=100)
    model = onnx.load(source)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(6), "six"))
    for node in model.graph.node:
        if node.name in ("relu1", "relu2"):
            node.op_type = "Clip"
            node.input.extend(["", "six"])
    model.graph.output.append(onnx.helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, None))
    onnx.save(model, source)
    assert equalise(prepare(source, tmp_path)) is None


@pytest.mark.parametrize("form", STATIC_FORMS)
def test_corrected_biases_take_the_mean_error_of_a_layer(tmp_path: Path, form: str) -> None:
    """One layer, whose outputs are not rounded: what the mean is off by goes, on the samples it was read from."""
    source = depthwise(tmp_path / "in.onnx", spread=1)
    model = prepare(source, tmp_path)
    x = noise(16).numpy() + 0.3
    feeds = ({"x": x[:6]}, {"x": x[6:]})  # of different sizes: the mean is over samples
    workshop = Workshop(model, tmp_path, feeds, {})
    others = frozenset({"depthwise", "second", "scores"})
    plain, corrected = (workshop.file(Variant(form, "minmax", repairs, others)) for repairs in ((), REPAIRS[1:]))
    expected = _first_layer(model.path, x)
    before, after = (np.abs((_first_layer(file, x) - expected).mean((0, 2, 3))) for file in (plain, corrected))
    assert before.max() > 1e-4
    assert after.max() < before.max() / 10


def _first_layer(place: Path, x: np.ndarray) -> Any:
    """What comes out of ``first``: the value behind it is a model output now."""
    model = onnx.load(place)
    value = next(node.output[0] for node in model.graph.node if node.name == "first")
    model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run([value], {"x": x})[0]


def test_a_shared_bias_is_corrected_for_each_layer_alone(tmp_path: Path) -> None:
    source = linear(tmp_path / "in.onnx")
    correct_biases(source, {"first": np.ones(16)}, tmp_path / "out.onnx")
    nodes = {node.name: node.input[2] for node in onnx.load(tmp_path / "out.onnx").graph.node if len(node.input) == 3}
    stored = weights_of(tmp_path / "out.onnx")
    np.testing.assert_allclose(stored[nodes["first"]], stored[nodes["second"]] + 1, rtol=1e-6)


def test_layers_in_fp32_are_not_corrected(tmp_path: Path) -> None:
    model = prepare(classifier(tmp_path / "in.onnx"), tmp_path)
    feeds = ({"x": noise(8).numpy()},)
    workshop = Workshop(model, tmp_path, feeds, {})
    file = workshop.file(Variant("u8s8", "minmax", fp32=frozenset({"first"})))
    assert set(corrections(model.path, file, feeds)) == {"second", "scores"}
    repaired = workshop.file(Variant("u8s8", "minmax", REPAIRS[1:], frozenset({"first"})))
    np.testing.assert_array_equal(weights_of(repaired)["first.bias"], weights_of(model.path)["first.bias"])


def test_unequal_channels_fail_until_they_are_repaired(tmp_path: Path) -> None:
    """Channels of a depthwise net that differ by 10,000: plain int8 sees only the large ones."""
    source, samples = depthwise(tmp_path / "in.onnx", spread=100), samples_of(noise(60))
    result, target = run(tmp_path, source, samples, {}, min_agreement=0.9)
    plain = [trial for trial in result.trials if not trial.repairs]
    assert plain
    assert not any(trial.within for trial in plain)
    assert (result.written, result.fp32_layers, result.repairs[:1]) == (True, (), ("equalise",))
    assert "equalise" in result.why
    assert result.trials[result.chosen or 0].snr_db[0] > max(trial.snr_db[0] for trial in plain) + 30
    assert target.exists()
    even, _ = run(tmp_path, depthwise(tmp_path / "even.onnx", spread=1), samples, {}, min_agreement=0.9)
    assert even.written


def test_a_repair_that_does_not_bring_it_nearer_is_left_out(tmp_path: Path) -> None:
    result, _ = run(tmp_path, classifier(tmp_path / "in.onnx"), samples_of(noise(60)))
    chosen = result.trials[result.chosen or 0]
    same = [trial for trial in result.trials if (trial.form, trial.calibration) == (chosen.form, chosen.calibration)]
    assert [trial.repairs for trial in same][:2] == [(), ("equalise",)]
    assert chosen.snr_db == max(trial.snr_db for trial in same)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_the_same_data_gives_the_same_bytes_when_repaired(tmp_path: Path, calibration: str) -> None:
    written = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        model = prepare(depthwise(folder / "in.onnx", spread=10), folder)
        feeds = tuple({"x": part.numpy()} for part in noise(24).split(8))
        workshop = Workshop(model, folder, feeds, {})
        written.append(workshop.file(Variant("u8s8", calibration, REPAIRS, frozenset({"second"}))).read_bytes())
    assert written[0] == written[1]
