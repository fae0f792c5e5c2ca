"""``slim-model IN OUT.onnx``: from the file IN to the files OUT.onnx, --save and --report."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from slim_model import distributed
from slim_model.atomic_write import beside
from slim_model.calling.flat_module import flat_module
from slim_model.commands.int8 import check_int8, int8_step, make_int8, put_in_place
from slim_model.commands.outputs import check_output_paths, ensure_temporary_folder, publish
from slim_model.coupling.explain import explain
from slim_model.errors import ExportError, ProofError
from slim_model.export.check_onnx import check_onnx
from slim_model.export.eager_model import EagerModel, runnable_form
from slim_model.export.opsets import check_opset
from slim_model.export.to_onnx import to_onnx
from slim_model.export.torch_files import save
from slim_model.export.writable import check_writable
from slim_model.graph.graph import Graph, first_sample
from slim_model.late import Late
from slim_model.loading.load import Subject, load
from slim_model.measuring.machine import check_device
from slim_model.measuring.runtimes import RUNTIMES
from slim_model.measuring.timing import Comparison, compare
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.pipeline.known import Known
from slim_model.progress import Progress
from slim_model.proof.own_module import SmallModule, make_small_module
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from slim_model.recipe_files.write import sections_of, toml_of
from slim_model.reporting.acceptance import check_gates
from slim_model.reporting.explanation import svg
from slim_model.reporting.report import Report, as_used, make_report
from slim_model.reporting.sensitivity_plot import draw_scans
from slim_model.training.resume import Resume
from slim_model.version import __version__

_html_page = Late("reporting.html.page:html_page")
_WITHOUT_CLASS = ("exported program", "torchscript")


@dataclass(frozen=True, slots=True)
class SharedWork:
    """What runs on one model share: the model as it was loaded, what follows from it, and the ``place`` where the dense
    ONNX file lies, which stays."""

    subject: Subject
    known: Known
    place: Path

    def folder(self) -> AbstractContextManager[Path]:
        return nullcontext(self.place)


def run_job(job: Job, progress: Progress, shared: SharedWork | None = None) -> Report | None:
    """load -> compile -> export, checked -> measure -> report -> gates -> save -> publish. Of several processes the
    first does all but compiling alone; the others have no report. ``shared``: what a sweep does once."""
    recipe, outputs, clock = job.recipe, job.outputs, _Clock()
    check_device(recipe.measuring.device)
    check_opset(outputs.opset)
    check_int8(job)
    check_output_paths(job.source.path, [job.target, *outputs.places])
    ensure_temporary_folder(job.target.parent)
    with clock("load"):
        progress(f"reading {job.source.path.name}")
        subject = shared.subject if shared else load(job.source.path, job.source.options, seed=recipe.seed)
    known = shared.known if shared else None
    resume = Resume(job.target.with_name(f"{job.target.name}.finetune"))
    with clock("compile"):
        compiled = compile_model(
            subject.model,
            subject.arguments,
            recipe,
            program=subject.program,
            resume=resume,
            known=known,
            check=None if outputs.save else check_writable,
            progress=progress,
        )
    if distributed.rank() > 0:
        return None
    draw_scans(compiled, recipe)
    with clock("compile"):
        small = make_small_module(subject.model, compiled.small)
        written = runnable_form(compiled.small, small.module)
    with beside(job.target) as temporary, tempfile.TemporaryDirectory() as other:  # OUT.onnx appears when all is done
        with clock("export"):
            progress("writing and checking ONNX")
            error = _export(job, subject, compiled, small, written, temporary)
        int8, quantized = Path(other) / "int8.onnx", None
        notes: list[str] = []
        if recipe.quantizing.int8:
            with clock("int8"):
                quantized, notes = make_int8(temporary, int8, compiled.small, recipe, progress)
        with clock("measure"):
            measured = _Measured(dense_bytes=compiled.dense_cost.bytes)
            if recipe.measuring.bench:
                written_int8 = int8 if quantized and quantized.written else None
                with shared.folder() if shared else tempfile.TemporaryDirectory() as folder:
                    measured = _measure(
                        job, subject, compiled, small, temporary, Path(folder), progress, int8=written_int8
                    )
        if quantized:
            quantized = replace(quantized, against_dense=measured.int8)
        used = replace(job, recipe=as_used(compiled, recipe, quantized))
        report = make_report(
            compiled,
            recipe,
            sections=sections_of(used, (outputs.report or job.target).parent),
            module_is_own=small.own or subject.kind in _WITHOUT_CLASS,
            source={"name": job.source.path.name, "sha256": subject.sha256, "kind": subject.kind},
            files=(measured.dense_bytes, temporary.stat().st_size),
            onnx_error=error,
            warnings=[*subject.notes, *_other_source(job, subject), *notes],
            quantized=quantized,
            later_steps=int8_step(quantized, clock.seconds.get("int8", 0.0)),
            latency=measured.latency,
            operators=measured.operators,
            seconds=clock.seconds,
        )
        if outputs.report:  # also where a gate is not met: it says why
            publish(outputs.report, report.as_json())
        if outputs.html:
            progress("drawing the report")
            picture = svg(explain(compiled.passes[-1].coupling))
            publish(outputs.html, _html_page(json.loads(report.as_json()), coupling_svg=picture))
        if outputs.write_recipe:
            publish(outputs.write_recipe, toml_of(sections_of(used, outputs.write_recipe.parent)))
        check_gates(report, recipe.gates)
        if outputs.save:
            save(compiled.small, small, outputs.save, compiled.removal(recipe))
        if quantized:
            put_in_place(quantized, int8, temporary, outputs.keep_fp32)
    resume.remove(recipe.budget.iterations)
    return report


def _other_source(job: Job, subject: Subject) -> list[str]:
    """A note where a run is repeated with another IN than it had."""
    if job.source.sha256 in (None, subject.sha256):
        return []
    return [f"{job.source.path} is not the file that the report tells of: its sha256 differs"]


def _export(
    job: Job, subject: Subject, compiled: Compiled, small: SmallModule, written: Graph | EagerModel, place: Path
) -> float:
    """Write the ONNX file; returns its largest relative error against PyTorch. Where ONNX has no form for the model, or
    the file is not what was proven, the small PyTorch model is saved all the same if that was asked for, and the error
    says so."""
    recipe, outputs = job.recipe, job.outputs
    try:
        lines = to_onnx(
            written,
            place,
            opset=outputs.opset,
            metadata=_metadata(subject, recipe),
            device=recipe.measuring.device,
        )
        return check_onnx(place, written, onnx_batches(written, recipe.seed), lines)
    except (ExportError, ProofError) as refused:
        instead = "The small PyTorch model is proven: --save small.safetensors or small.pt keeps it."
        if outputs.save:
            save(compiled.small, small, outputs.save, compiled.removal(recipe))
            instead = f"The small PyTorch model is proven, and is in {outputs.save}."
        raise type(refused)(f"{refused} {instead}") from refused


def _metadata(subject: Subject, recipe: Recipe) -> dict[str, str]:
    """What the ONNX file says of itself."""
    criterion, budget = recipe.ranking.criterion, recipe.budget
    return {
        "slim_model_version": __version__,
        "slim_model_budget": budget.target or f"{budget.of} ratio={budget.ratio:g}",
        **({} if budget.target else {"slim_model_ratio": str(budget.ratio)}),
        "slim_model_criterion": criterion if isinstance(criterion, str) else criterion.__name__,
        "slim_model_source_sha256": subject.sha256,
    }


def _measure(
    job: Job,
    subject: Subject,
    compiled: Compiled,
    small: SmallModule,
    written: Path,
    folder: Path,
    progress: Progress,
    *,
    int8: Path | None,
) -> _Measured:
    """Dense against slim, in turns, in onnxruntime and in PyTorch; dense against ``int8`` in onnxruntime. The dense
    ONNX file lies in ``folder``."""
    inputs, measuring = first_sample(compiled.dense), job.recipe.measuring
    suffix = "" if measuring.device == "cpu" else "-cuda"
    dense = folder / "dense.onnx"
    if not dense.exists():
        progress("exporting the dense model to compare with")
        to_onnx(
            runnable_form(compiled.dense, subject.model),
            dense,
            opset=job.outputs.opset,
            metadata={},
            device=measuring.device,
            weights_beside=True,
        )
    rows = []
    modules = [flat_module(module, compiled.dense.arguments) for module in (subject.model, small.module)]
    pairs: dict[str, tuple[Any, Any]] = {"onnxruntime": (dense, written), "pytorch": (modules[0], modules[1])}
    for runtime, (big, little) in pairs.items():
        progress(f"measuring latency in {runtime}")
        rows.append(compare(runtime + suffix, big, little, inputs, threads=measuring.threads))
    against_int8 = None
    if int8:
        progress("measuring the latency of int8 against the dense model")
        against_int8 = compare("onnxruntime", dense, int8, inputs, threads=measuring.threads)
    operators = []
    if job.outputs.html:  # a page has room for where the time goes
        progress("measuring operators in onnxruntime")
        operators = _operators("onnxruntime" + suffix, dense, written, inputs, measuring.threads)
    return _Measured(rows, operators, sum(file.stat().st_size for file in folder.iterdir()), against_int8)


def _operators(runtime: str, dense: Path, slim: Path, inputs: Sequence[Tensor], threads: int) -> list[dict[str, Any]]:
    """What each kind of operator takes, by the profile that ``runtime`` writes of itself."""
    profile = RUNTIMES[runtime].per_op
    assert profile is not None, runtime
    return [
        {"model": model} | asdict(operator)
        for model, file in (("dense", dense), ("slim", slim))
        for operator in profile(file, inputs, threads)
    ]


@dataclass(frozen=True, slots=True)
class _Measured:
    """``dense_bytes``: of the dense ONNX file, or of the stored tensors where none was written."""

    latency: list[Comparison] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    dense_bytes: int = 0
    int8: Comparison | None = None


class _Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 3)
