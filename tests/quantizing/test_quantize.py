"""int8 is right on held-out samples, faster, and the same for the same data; else fp32 is kept."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_nets import SIZE, classifier, linear, recurrent, without_layers

from slim_model.data.batches import Data
from slim_model.data.open_data import open_data
from slim_model.errors import InputError
from slim_model.measuring.timing import Comparison, Latency
from slim_model.progress import say_nothing
from slim_model.quantizing import float_model, variants
from slim_model.quantizing.float_model import prepare
from slim_model.quantizing.forms import FORMS
from slim_model.quantizing.judge import Judgement
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.quantize import Quantized, quantize
from slim_model.quantizing.samples import Samples, collect
from slim_model.quantizing.search import Limits, Timer, Tried, by_speed

_ONE = torch.zeros(1, *SIZE)


@dataclass(frozen=True)
class Takes:
    dynamic_batch: bool = True
    inputs: tuple[Any, ...] = (_ONE,)
    input_names: tuple[str, ...] = ("x",)


def noise(count: int, *, loud: float = 1.0) -> torch.Tensor:
    x = torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(0))
    x[:, 2] *= loud
    return x


def data_of(x: torch.Tensor) -> Data:
    return open_data([*x.split(20)], (_ONE,), samples=len(x))


def samples_of(x: torch.Tensor) -> Samples:
    return collect(data_of(x), Takes(), ["x"])


def says(speeds: dict[str, float]) -> Timer:
    """A timer to which files are so much faster than the first as ``speeds`` has it by their form, else 1.5 times."""

    def timer(_: str, files: Sequence[Path], *__: Any, **___: Any) -> list[Comparison]:
        one = Latency("onnxruntime", 1.0, 1.0, 1.0, 1, 1, "cpu", 5)
        found = [speeds.get(file.name.split("-minmax")[0], 1.5) for file in files[1:]]
        ratios = [1.0, *found]
        return [Comparison("onnxruntime", one, one, x, x - 0.1, x + 0.1) for x in ratios]

    return timer


def run(
    folder: Path,
    source: Path,
    samples: Samples,
    speeds: dict[str, float] | None = None,
    max_drop: float | None = None,
    **options: Any,
) -> tuple[Quantized, Path]:
    target = folder / "out.onnx"
    limits = Limits(1, None if speeds is None else [_ONE], max_drop)
    result = quantize(
        source,
        target,
        samples,
        QuantizingOptions(int8=True, **options),
        limits,
        progress=say_nothing,
        timer=says(speeds or {}),
    )
    return result, target


def types_of(place: Path) -> list[str]:
    return [node.op_type for node in onnx.load(place).graph.node]


def layers_in_fp32(place: Path) -> set[str]:
    """Those whose weight is stored as float."""
    graph = onnx.load(place).graph
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return {n.name for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in floats}


def test_the_fastest_form_is_written(tmp_path: Path) -> None:
    source = classifier(tmp_path / "in.onnx")
    result, target = run(tmp_path, source, samples_of(noise(60)), {"u8u8": 3.0})
    assert result.written
    assert (result.form, result.calibration, result.fp32_layers) == ("u8u8", "minmax", ())
    assert {trial.form for trial in result.trials[:4]} == {"u8u8", "u8s8-7bit", "u8s8", "s8s8"}
    assert {trial.form for trial in result.trials if trial.repairs} == {"u8u8"}
    assert layers_in_fp32(target) == set()
    assert result.int8_bytes == target.stat().st_size
    metadata = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert metadata == {"made": "by hand", "slim_model_int8": "u8u8"}


def test_of_forms_that_are_as_fast_the_nearest_is_written(tmp_path: Path) -> None:
    result, _ = run(tmp_path, classifier(tmp_path / "in.onnx"), samples_of(noise(60)), {"s8s8": 1.2})
    signals = {trial.form: trial.snr_db for trial in result.trials}
    assert result.form == max(("u8s8-7bit", "u8s8", "u8u8"), key=lambda form: signals[form]) != "u8s8-7bit"


def test_noise_within_the_intervals_changes_no_choice(tmp_path: Path) -> None:
    """Intervals are 0.1 to either side: 1.4 is not shown to be slower than 1.55."""
    source, samples = classifier(tmp_path / "in.onnx"), samples_of(noise(60))
    draw = np.random.default_rng(0)
    written = set()
    for _ in range(4):
        speeds = {name: 1.5 + draw.uniform(-0.1, 0.1) for name, form in FORMS.items() if not form.dynamic}
        written.add(run(tmp_path, source, samples, speeds)[1].read_bytes())
    assert len(written) == 1


def test_as_near_and_as_fast_the_first_form_is_taken() -> None:
    one = Latency("onnxruntime", 1.0, 1.0, 1.0, 1, 1, "cpu", 5)
    same = [
        Tried(variants.Variant(name, "minmax"), Judgement(1.0, (30.0,), None), True,
              Comparison("onnxruntime", one, one, speed, speed - 0.1, speed + 0.1))
        for name, speed in (("u8s8-7bit", 1.5), ("u8s8", 1.6), ("s8s8", 1.3))
    ]  # fmt: skip
    assert [tried.variant.form for tried in by_speed(same)] == ["u8s8-7bit", "u8s8", "s8s8"]
    same[2] = dataclasses.replace(same[2], judgement=Judgement(1.0, (60.0,), None))  # nearer, and shown to be slower
    assert [tried.variant.form for tried in by_speed(same)] == ["u8s8-7bit", "u8s8", "s8s8"]


def test_another_calibration_is_as_fast_as_its_form(tmp_path: Path) -> None:
    """Its speed was left out, so that slower int8 was written."""
    x = noise(60)
    x[0] *= 300  # minmax gives every scale to one sample
    source, samples = classifier(tmp_path / "in.onnx"), samples_of(x)
    result, target = run(tmp_path, source, samples, dict.fromkeys(FORMS, 1.05), min_agreement=0.7)
    assert result.calibration != "minmax"
    assert not result.written
    assert not target.exists()


def test_the_written_file_agrees_as_it_says(tmp_path: Path) -> None:
    """By a computation of its own, on the samples that were held out: every fifth."""
    x = noise(60)
    source = classifier(tmp_path / "in.onnx")
    result, target = run(tmp_path, source, samples_of(x))
    held = {"x": x[4::5].numpy()}
    fp32, int8 = (onnxruntime.InferenceSession(str(file)).run(None, held)[0] for file in (source, target))
    chosen = result.trials[result.chosen or 0]
    assert result.held_out == len(fp32) == 12
    assert chosen.agreement == pytest.approx((fp32.argmax(1) == int8.argmax(1)).mean())
    noise_db = 10 * np.log10(np.square(fp32 - fp32.mean()).sum() / np.square(fp32 - int8).sum())
    assert chosen.snr_db == (pytest.approx(noise_db, abs=0.02),)
    assert 15 < noise_db < 60


def test_softmax_stays_in_fp32(tmp_path: Path) -> None:
    result, target = run(tmp_path, classifier(tmp_path / "in.onnx"), samples_of(noise(60)))
    assert result.tail == ("softmax",)
    assert result.others == {"Softmax": 1}
    assert types_of(target)[-1] == "Softmax"


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if not form.dynamic])
def test_the_same_data_gives_the_same_bytes(tmp_path: Path, form: str) -> None:
    source, samples = classifier(tmp_path / "in.onnx"), samples_of(noise(60))
    written = [run(tmp_path, source, samples, int8_form=form)[1].read_bytes() for _ in range(2)]
    assert written[0] == written[1]


def test_held_out_samples_never_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any calibration, also where layers are left out: those held out are a thousand times as large."""
    x = noise(60)
    x[4::5] *= 1000
    largest: list[float] = []
    original: Callable[..., Any] = variants.ranges

    def watched(model: Path, feeds: Any, calibration: str) -> Any:
        largest.extend(float(np.abs(feed["x"]).max()) for feed in feeds)
        return original(model, feeds, calibration)

    monkeypatch.setattr(variants, "ranges", watched)
    result, _ = run(tmp_path, classifier(tmp_path / "in.onnx"), samples_of(x), min_agreement=1.0)
    assert len({trial.calibration for trial in result.trials}) > 1
    assert largest
    assert max(largest) < 10


def test_slower_int8_keeps_fp32(tmp_path: Path) -> None:
    source, samples = classifier(tmp_path / "in.onnx"), samples_of(noise(60))
    slow = dict.fromkeys(FORMS, 1.05)  # its interval holds 1
    result, target = run(tmp_path, source, samples, slow)
    assert not result.written
    assert "not shown to be faster" in result.why
    assert not target.exists()
    assert {trial.form for trial in result.trials} == {name for name, form in FORMS.items() if not form.dynamic}
    result, target = run(tmp_path, source, samples, slow, int8_anyway=True)
    assert result.written
    assert target.exists()


def test_the_layer_that_costs_most_stays_fp32(tmp_path: Path) -> None:
    """The input of the first has one channel that is 3000 times as large: int8 sees nothing of the others."""
    source, samples = classifier(tmp_path / "in.onnx", loud=3000), samples_of(noise(60, loud=3000))
    result, target = run(tmp_path, source, samples, {}, min_agreement=0.9)
    assert result.written
    assert [layer.name for layer in result.fp32_layers] == ["first"]
    assert result.fp32_layers[0].gain_db > 10
    assert layers_in_fp32(target) == {"first"}
    assert [trial.within for trial in result.trials if not trial.fp32_layers] == [False] * (len(result.trials) - 1)


def test_with_labels_and_max_drop_the_accuracy_counts(tmp_path: Path) -> None:
    """Labels that are what fp32 says: all right before, so that agreement is accuracy."""
    source, samples = classifier(tmp_path / "in.onnx"), samples_of(noise(60))
    session = onnxruntime.InferenceSession(str(source))
    said = [session.run(None, feed)[0].argmax(1) for feed in samples.held]
    labelled = dataclasses.replace(samples, labels=np.concatenate(said))
    result, target = run(tmp_path, source, labelled, max_drop=-0.01, min_agreement=0.01)
    assert (result.written, result.held_out_accuracy) == (False, 1.0)
    assert result.why == "fp32 was kept: no form of int8 is within max_drop -0.01 on held-out samples"
    assert not target.exists()
    assert all(trial.accuracy == trial.agreement for trial in result.trials)
    assert run(tmp_path, source, labelled, max_drop=0.5, min_agreement=1.0)[0].written


def test_an_lstm_is_quantised_dynamically(tmp_path: Path) -> None:
    x = torch.randn(60, 6, 3, generator=torch.Generator().manual_seed(0))
    samples = collect(open_data([x], (x[:1],), samples=60), Takes(True, (x[:1],)), ["x"])
    source = recurrent(tmp_path / "in.onnx")
    result, target = run(tmp_path, source, samples, {"dynamic": 3.0}, min_agreement=0.8)
    assert {"u8s8", "dynamic", "dynamic-7bit"} < {trial.form for trial in result.trials}
    assert (result.written, result.form, result.calibration) == (True, "dynamic", "")
    assert {"DynamicQuantizeLSTM", "MatMulInteger"} <= set(types_of(target))
    assert min(result.trials[0].snr_db) > 15
    with pytest.raises(InputError, match="quantised already: it holds DynamicQuantize"):
        run(tmp_path, target.rename(tmp_path / "int8.onnx"), samples)


@pytest.mark.parametrize("form", FORMS)
def test_noted_shapes_of_stored_weights_do_no_harm(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shapes cannot be followed they stayed, and dynamic forms, which turn weights about, could not be built."""
    monkeypatch.setattr(float_model, "_pre_process", shutil.copyfile)
    model = prepare(linear(tmp_path / "in.onnx"), tmp_path)
    x = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    workshop = variants.Workshop(model, tmp_path, ({"x": x},), {})
    file = workshop.file(variants.Variant(form, "" if FORMS[form].dynamic else "minmax"))
    assert onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0].shape == (8, 16)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_is_left_out_stays_fp32_in_every_form(tmp_path: Path, form: str) -> None:
    """Of a dynamic form the quantiser renames a Gemm first, and looked for the old name."""
    model = prepare(linear(tmp_path / "in.onnx"), tmp_path)
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).numpy()
    workshop = variants.Workshop(model, tmp_path, ({"x": x},), {})
    calibration = "" if FORMS[form].dynamic else "minmax"
    session = onnxruntime.InferenceSession(str(tmp_path / "in.onnx"))
    expected = session.run(None, {"x": x})[0]
    errors = {}
    for left in ((), ("first",), ("first", "second")):
        file = workshop.file(variants.Variant(form, calibration, fp32=frozenset(left)))
        errors[left] = np.abs(onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0] - expected).max()
    assert errors[()] > 1e-3
    assert errors["first", "second"] < 1e-5
    assert 1e-5 < errors["first",] != errors[()]


def test_few_samples_are_told(tmp_path: Path) -> None:
    assert samples_of(noise(40)).notes == []
    assert "24 samples; give 32 or more" in samples_of(noise(30)).notes[0]
    with pytest.raises(InputError, match="too few samples for int8"):
        samples_of(noise(4))


def test_a_fixed_batch_is_calibrated_in_whole_batches(tmp_path: Path) -> None:
    example = torch.zeros(2, *SIZE)
    data = open_data([noise(41)], (example,), samples=41, fixed_batch=True)
    samples = collect(data, Takes(False, (example,)), ["x"])
    assert (samples.count, samples.held_count) == (32, 8)
    result, _ = run(tmp_path, classifier(tmp_path / "in.onnx", batch=2), samples)
    assert result.written


def test_what_onnxruntime_has_no_kernel_for_is_named(tmp_path: Path) -> None:
    source = classifier(tmp_path / "in.onnx")
    model = onnx.load(source)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Swirl", "acme"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    onnx.save(model, source)
    with pytest.raises(InputError, match=r"in\.onnx cannot be int8, .* cannot run it: acme:Swirl\(-1\) is not a"):
        run(tmp_path, source, samples_of(noise(60)))


def test_more_than_the_quantiser_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data beside the file counts."""
    monkeypatch.setattr(float_model, "MOST_BYTES", 4_000)
    samples = samples_of(noise(60))
    with pytest.raises(InputError, match=r"has 0\.0 GB with its data; onnxruntime's quantiser takes 0\.0 at most"):
        run(tmp_path, classifier(tmp_path / "in.onnx"), samples)
    onnx.save(
        onnx.load(tmp_path / "in.onnx"), tmp_path / "apart.onnx",
        save_as_external_data=True, location="data", size_threshold=64,
    )  # fmt: skip
    assert (tmp_path / "apart.onnx").stat().st_size < 4_000
    with pytest.raises(InputError, match="with its data"):
        run(tmp_path, tmp_path / "apart.onnx", samples)
    monkeypatch.undo()
    assert run(tmp_path, tmp_path / "apart.onnx", samples)[0].written


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(classifier(tmp_path / "whole.onnx").read_bytes()[:700])
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        run(tmp_path, tmp_path / "in.onnx", samples_of(noise(60)))


def test_what_cannot_be_int8_is_refused(tmp_path: Path) -> None:
    samples = samples_of(noise(60))
    with pytest.raises(InputError, match=r"of opset 11; int8 .* needs 13"):
        run(tmp_path, classifier(tmp_path / "old.onnx", opset=11), samples)
    with pytest.raises(InputError, match="no layer that onnxruntime computes in int8"):
        run(tmp_path, without_layers(tmp_path / "square.onnx"), samples)
    with pytest.raises(InputError, match="form dynamic does not fit this model; these do: u8s8-7bit"):
        run(tmp_path, classifier(tmp_path / "in.onnx"), samples, int8_form="dynamic")
    _, target = run(tmp_path, classifier(tmp_path / "in.onnx"), samples)
    with pytest.raises(InputError, match="quantised already: it holds"):
        run(tmp_path, target.rename(tmp_path / "int8.onnx"), samples)
