"""What a run measures of the files that it wrote: latency, dense and slim in turns, and where the time goes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from slim_model.calling.flat_module import flat_module
from slim_model.export.eager_model import runnable_form
from slim_model.export.to_onnx import to_onnx
from slim_model.from_onnx.model import OnnxModel
from slim_model.graph.graph import first_sample
from slim_model.loading.load import Subject
from slim_model.measuring.runtimes import RUNTIMES
from slim_model.measuring.timing import Comparison, compare
from slim_model.pipeline.compiled import Compiled
from slim_model.progress import Progress
from slim_model.proof.own_module import SmallModule
from slim_model.recipe_files.job import Job


@dataclass(frozen=True, slots=True)
class Made:
    """What a job made: the ``small`` module of what was ``compiled`` of its ``subject``."""

    job: Job
    subject: Subject
    compiled: Compiled
    small: SmallModule


@dataclass(frozen=True, slots=True)
class Files:
    """ONNX files of the small model, of its ``int8`` form where that is written; ``dense_folder``: where that of the
    dense model lies and stays, for the next run; None: it is written for this one alone."""

    slim: Path
    int8: Path | None
    dense_folder: Path | None


@dataclass(frozen=True, slots=True)
class Measured:
    """``dense_bytes``: of the dense ONNX file, or of the stored tensors where none was written. ``int8``: against the
    dense model."""

    latency: list[Comparison] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    dense_bytes: int = 0
    int8: Comparison | None = None


def nothing_measured(made: Made) -> Measured:
    """Where no latency is asked for."""
    return Measured(dense_bytes=made.compiled.dense_cost.bytes)


def measure(made: Made, files: Files, progress: Progress) -> Measured:
    """Dense against slim, in turns, in onnxruntime and in PyTorch; dense against int8 in onnxruntime."""
    with _folder(files) as folder:
        dense = _dense_file(made, Path(folder), progress)
        inputs, measuring = first_sample(made.compiled.dense), made.job.recipe.measuring
        suffix = "" if measuring.device == "cpu" else "-cuda"
        modules = [flat_module(m, made.compiled.dense.arguments) for m in (made.subject.model, made.small.module)]
        pairs: dict[str, tuple[Any, Any]] = {"onnxruntime": (dense, files.slim), "pytorch": (modules[0], modules[1])}
        rows = []
        for runtime, (big, little) in pairs.items():
            progress(f"measuring latency in {runtime}")
            rows.append(compare(runtime + suffix, big, little, inputs, threads=measuring.threads))
        against_int8 = None
        if files.int8:
            progress("measuring the latency of int8 against the dense model")
            against_int8 = compare("onnxruntime", dense, files.int8, inputs, threads=measuring.threads)
        operators = []
        if made.job.outputs.html:  # a page has room for where the time goes
            progress("measuring operators in onnxruntime")
            operators = _operators("onnxruntime" + suffix, dense, files.slim, inputs, measuring.threads)
        return Measured(rows, operators, sum(file.stat().st_size for file in Path(folder).iterdir()), against_int8)


def _folder(files: Files) -> AbstractContextManager[Any]:
    return nullcontext(files.dense_folder) if files.dense_folder else tempfile.TemporaryDirectory()


def _dense_file(made: Made, folder: Path, progress: Progress) -> Path:
    """The dense model as ONNX in ``folder``, written where it is not there yet: the user's own file, where that takes
    the same inputs."""
    dense, model = folder / "dense.onnx", made.subject.model
    if isinstance(model, OnnxModel) and made.subject.arguments.plain and not (model.file.half or model.file.beside):
        dense.write_bytes(model.file.content)
    if not dense.exists():
        progress("exporting the dense model to compare with")
        to_onnx(
            runnable_form(made.subject.named(made.compiled.dense), made.subject.model),
            dense,
            opset=made.job.outputs.opset,
            metadata={},
            device=made.job.recipe.measuring.device,
            weights_beside=True,
        )
    return dense


def _operators(runtime: str, dense: Path, slim: Path, inputs: Sequence[Tensor], threads: int) -> list[dict[str, Any]]:
    """What each kind of operator takes, in turns, by the profile that ``runtime`` writes of itself."""
    profile = RUNTIMES[runtime].per_op
    assert profile is not None, runtime
    found = zip(("dense", "slim"), profile((dense, slim), inputs, threads), strict=True)
    return [{"model": model} | asdict(operator) for model, operators in found for operator in operators]
