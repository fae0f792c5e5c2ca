"""``slim-model quantize IN.onnx OUT.onnx``: a file that is there already, as int8."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slim_model.atomic_write import beside
from slim_model.commands.outputs import check_output_paths, publish
from slim_model.data.open_sources import Sources, open_sources
from slim_model.data.options import DataOptions
from slim_model.errors import GateError, InputError
from slim_model.loading.model_file import open_artifact
from slim_model.loading.source import SourceOptions
from slim_model.progress import Progress
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.quantize import Quantized, quantize
from slim_model.quantizing.samples import collect
from slim_model.quantizing.search import Limits
from slim_model.reporting.quantized_report import quantized_report


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """The arguments of ``slim-model quantize``; ``bench``: the latency is measured, with ``threads``."""

    source: Path
    target: Path
    data: DataOptions
    quantizing: QuantizingOptions
    loading: SourceOptions = field(default_factory=SourceOptions)
    max_drop: float | None = None
    bench: bool = True
    threads: int = 1
    seed: int = 0
    report: Path | None = None


@dataclass(frozen=True, slots=True)
class _OnnxInputs:
    """As a ``Graph`` says it of its own."""

    dynamic_batch: bool
    inputs: tuple[Any, ...]
    input_names: tuple[str, ...]


def quantize_file(job: QuantizeJob, progress: Progress) -> tuple[Quantized, list[str]]:
    """The file written, and notes. Raises GateError, behind the report, where no int8 is right and faster: then there
    is no OUT.onnx."""
    check_output_paths(job.source, filter(None, [job.target, job.report]))
    if job.source.suffix != ".onnx":
        raise InputError(f"{job.source} is no .onnx file: slim-model IN OUT.onnx --int8 takes a PyTorch model.")
    if job.data.data is None:
        raise InputError("int8 is calibrated on data, and none was given: add --data SPEC.")
    progress(f"reading {job.source.name}")
    artifact = open_artifact(job.source, job.loading)
    one = artifact.example(artifact.fixed_batch or 1)
    names = tuple(signature.name for signature in artifact.inputs)
    inputs = _OnnxInputs(artifact.fixed_batch is None, tuple(one), names)
    sources: Sources = open_sources(job.data, inputs, seed=job.seed, training=False)
    assert sources.calibration is not None
    if job.max_drop is not None and (sources.test is None or not sources.test.labelled):
        raise InputError("max_drop: no accuracy can be read; it takes labels, classes, and a test part of the data.")
    samples = collect(sources.calibration, inputs, names)
    with beside(job.target) as temporary:
        limits = Limits(job.threads, one if job.bench else None, job.max_drop)
        result = quantize(job.source, temporary, samples, job.quantizing, limits, test=sources.test, progress=progress)
        if job.report:
            report = quantized_report(job.source.name, artifact.sha256, result, samples.notes)
            publish(job.report, report.as_json())
        if not result.written:
            raise GateError(f"{result.why}. {job.target.name} was not written.")
        before, after = result.fp32_accuracy, result.int8_accuracy
        if job.max_drop is not None and before is not None and after is not None and before - after > job.max_drop:
            raise GateError(f"int8 is not handed out: accuracy fell from {before:.2%} to {after:.2%}, by more than "
                            f"{job.max_drop:.2%}.")  # fmt: skip
    return result, samples.notes
