"""``slim-model IN OUT.onnx``: from the file IN to the files OUT.onnx, --save and --report."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from slim_model import distributed
from slim_model.atomic_write import beside
from slim_model.commands.int8 import check_int8, int8_step, make_int8, put_in_place
from slim_model.commands.latency import Files, Made, Measured, measure, nothing_measured
from slim_model.commands.outputs import check_output_paths, ensure_temporary_folder, keep_apart, publish
from slim_model.coupling.explain import explain
from slim_model.errors import ExportError, InputError, ProofError
from slim_model.export.check_onnx import check_onnx
from slim_model.export.eager_model import runnable_form
from slim_model.export.multiply_out import multiplied_out
from slim_model.export.opsets import check_opset
from slim_model.export.to_onnx import to_onnx
from slim_model.export.torch_files import save
from slim_model.export.writable import check_writable
from slim_model.folders.as_subject import load_source
from slim_model.from_onnx.kept import kept_nodes
from slim_model.graph.graph import Graph
from slim_model.late import Late
from slim_model.loading.load import Subject
from slim_model.measuring.machine import check_device
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.pipeline.known import Known
from slim_model.progress import Progress
from slim_model.proof.own_module import make_small_module
from slim_model.quantizing.quantize import Quantized
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job, files_read
from slim_model.recipe_files.write import sections_of, toml_of
from slim_model.reporting.acceptance import check_gates, unmet_gates
from slim_model.reporting.explanation import svg
from slim_model.reporting.report import Report, as_decided, make_report
from slim_model.reporting.sensitivity_plot import draw_scans
from slim_model.training.resume import Resume
from slim_model.version import __version__

_html_page = Late("reporting.html.page:html_page")
_summary = Late("reporting.markdown.documents:summary")
_model_card = Late("reporting.markdown.documents:model_card")
_WITHOUT_CLASS = ("exported program", "torchscript", "onnx")


@dataclass(frozen=True, slots=True)
class SharedWork:
    """What runs on one model share: the model as it was loaded, what follows from it, and a ``place`` for dense ONNX
    files, which stay."""

    subject: Subject
    known: Known
    place: Path

    def dense_folder(self, recipe: Recipe) -> Path:
        """Where the dense file lies: one for each way to trace the model and each device."""
        make = partial(tempfile.mkdtemp, dir=self.place)
        return Path(self.known.once("dense file", (recipe.tracing, recipe.measuring.device), make))


def run_job(
    job: Job,
    progress: Progress,
    shared: SharedWork | None = None,
    *,
    tell: Callable[[Report], None] = lambda report: None,
) -> Report | None:
    """load -> compile -> export, checked -> int8 -> measure -> report -> gates -> save -> publish. Of several processes
    the first does all but compiling alone; the others have no report. ``shared``: what a sweep does once. ``tell`` is
    called with the report ahead of the gates."""
    _check(job)
    job = replace(job, recipe=job.recipe.decided())
    recipe, clock = job.recipe, _Clock()
    with clock("load"):
        progress(f"reading {job.source.path.name}")
        subject = shared.subject if shared else load_source(job.source.path, job.source.options, seed=recipe.seed)
    job = _for_its_library(job, subject)
    recipe = job.recipe
    _check_save(job, subject)
    resume = Resume(job.target.with_name(f"{job.target.name}.finetune"))
    with clock("compile"):
        compiled = compile_model(
            subject.model,
            subject.arguments,
            recipe,
            program=subject.program,
            resume=resume,
            known=shared.known if shared else None,
            check=None if job.outputs.save else check_writable,
            boxes=subject.use.boxes,
            progress=progress,
        )
    if distributed.rank() > 0:
        return None
    draw_scans(compiled, recipe)
    with clock("compile"):
        every_method = _writes_for_library(job, subject)  # the library exports by others than forward
        small = make_small_module(subject.model, compiled.small, compiled.dense, every_method=every_method)
        made = Made(job, subject, compiled, small)
    with beside(job.target) as slim, tempfile.TemporaryDirectory() as folder:  # OUT.onnx appears when all is done
        with clock("export"):
            progress("writing and checking ONNX")
            error = _export(made, slim)
        int8, quantized, notes = Path(folder) / "int8.onnx", None, multiplied_out(slim)
        if recipe.quantizing.int8:
            with clock("int8"):
                quantized, more = make_int8(slim, int8, compiled.small, recipe, progress)
                notes += more
        with clock("measure"):
            dense_folder = shared.dense_folder(recipe) if shared else None
            files = Files(slim, int8 if quantized and quantized.written else None, dense_folder)
            measured = measure(made, files, progress) if recipe.measuring.bench else nothing_measured(made)
        report = _report(made, measured, quantized, files, error, notes, clock.seconds)
        tell(report)
        check_gates(report, recipe.gates)
        if job.outputs.save:
            _save(made, job.outputs.save)
        if job.outputs.model_card:
            publish(job.outputs.model_card, _model_card(json.loads(report.as_json()), job.target.name))
        if quantized:
            put_in_place(quantized, int8, slim, job.outputs.keep_fp32)
    resume.remove(recipe.budget.iterations)
    return report


def _check(job: Job) -> None:
    """Raise InputError for whatever can be refused before any work."""
    check_device(job.recipe.measuring.device)
    check_opset(job.outputs.opset)
    check_int8(job)
    check_output_paths(job.source.path, [job.target, *job.outputs.places])
    keep_apart(files_read(job), [job.target, *job.outputs.places])
    ensure_temporary_folder(job.target.parent)


def _check_save(job: Job, subject: Subject) -> None:
    """Weights alone are put into the model's own class, which an ONNX file does not have."""
    place = job.outputs.save
    if subject.kind == "onnx" and place and place.suffix == ".safetensors":
        raise InputError(
            f"--save {place.name}: weights alone need the model's class, and an ONNX file has none. Give small.pt2 or "
            "small.pt, which hold the model, too."
        )


def _report(
    made: Made,
    measured: Measured,
    quantized: Quantized | None,
    files: Files,
    error: float,
    notes: list[str],
    seconds: dict[str, float],
) -> Report:
    """The report, written wherever it was asked for: also where a gate is not met, since it says why."""
    job, subject, compiled = made.job, made.subject, made.compiled
    if quantized:
        quantized = replace(quantized, against_dense=measured.int8)
    used = replace(job, recipe=as_decided(job.recipe, compiled.block, quantized))
    report = make_report(
        compiled,
        job.recipe,
        sections=sections_of(used, (job.outputs.report or job.target).parent),
        module_is_own=made.small.own or subject.kind in _WITHOUT_CLASS,
        source={"name": job.source.path.name, "sha256": subject.sha256, "kind": subject.kind}
        | _reading(compiled.dense),
        files=(measured.dense_bytes, files.slim.stat().st_size),
        onnx_error=error,
        warnings=[*subject.notes, *_other_source(job, subject), *_needed(made), *_not_its_librarys(made), *notes],
        quantized=quantized,
        later_steps=int8_step(quantized, seconds.get("int8", 0.0)),
        latency=measured.latency,
        operators=measured.operators,
        seconds=seconds,
    )
    if job.outputs.report:
        publish(job.outputs.report, report.as_json())
    if job.outputs.html:
        picture = svg(explain(compiled.passes[-1].coupling))
        publish(job.outputs.html, _html_page(json.loads(report.as_json()), coupling_svg=picture))
    if job.outputs.summary:
        publish(job.outputs.summary, _summary(json.loads(report.as_json()), unmet_gates(report, job.recipe.gates)))
    if job.outputs.write_recipe:
        publish(job.outputs.write_recipe, toml_of(sections_of(used, job.outputs.write_recipe.parent)))
    return report


def _for_its_library(job: Job, subject: Subject) -> Job:
    """Where ``--save`` writes a file for the model's library, its classes must take the smaller layers."""
    if not _writes_for_library(job, subject):
        return job
    coupling = job.recipe.coupling
    coupling = replace(coupling, equal_pieces=True, keep=(*coupling.keep, *subject.use.keep))
    return replace(job, recipe=replace(job.recipe, coupling=coupling))


def _writes_for_library(job: Job, subject: Subject) -> bool:
    saved = job.outputs.save
    return saved is not None and saved.suffix == ".pt" and subject.library is not None and bool(subject.library.file)


def _save(made: Made, path: Path) -> None:
    module = made.small.module
    content = made.subject.small_file(module) if made.small.own else None
    save(made.compiled.small, made.small, path, made.compiled.removal(made.job.recipe), content=content)


def _not_its_librarys(made: Made) -> list[str]:
    """A note where ``--save`` holds the traced graph, which the library cannot load."""
    if made.small.own or not _writes_for_library(made.job, made.subject):
        return []
    assert made.subject.library is not None
    package = made.subject.library.package
    return [f"{made.job.outputs.save} holds the traced graph, which {package} does not load: its own classes do not "
            "take these layers"]  # fmt: skip


def _reading(dense: Graph) -> dict[str, float]:
    """How far what was read of an ONNX file is from that file."""
    return {} if dense.read_error is None else {"read_max_rel_error": dense.read_error}


def _other_source(job: Job, subject: Subject) -> list[str]:
    """A note where a run is repeated with another IN than it had."""
    if job.source.sha256 in (None, subject.sha256):
        return []
    return [f"{job.source.path} is not the file that the report tells of: its sha256 differs"]


def _needed(made: Made) -> list[str]:
    """A note where the saved model has nodes of the ONNX file in it, which are an operator of ours."""
    place = made.job.outputs.save
    if place is None or not kept_nodes(made.compiled.small.module.graph):
        return []
    return [
        f"{place.name} needs slim-model where it is loaded: import slim_model.from_onnx.kept first, which runs the "
        "nodes that are kept as they are; OUT.onnx does not need it"
    ]


def _export(made: Made, place: Path) -> float:
    """Write the ONNX file; returns its largest relative error against PyTorch. Where ONNX has no form for the model, or
    the file is not what was proven, the small PyTorch model is saved all the same if that was asked for, and the error
    says so."""
    recipe, outputs = made.job.recipe, made.job.outputs
    compiled = made.compiled
    written = runnable_form(made.subject.named(compiled.small), made.small.module)
    try:
        lines = to_onnx(
            written,
            place,
            opset=outputs.opset,
            metadata=_metadata(made.subject, recipe),
            device=recipe.measuring.device,
        )
        return check_onnx(place, written, onnx_batches(written, recipe.seed), lines)
    except (ExportError, ProofError) as refused:
        form = "pt2" if made.subject.kind == "onnx" else "safetensors"  # an ONNX file has no class to restore into
        instead = f"The small PyTorch model is proven: --save small.{form} or small.pt keeps it."
        if outputs.save:
            _save(made, outputs.save)
            instead = f"The small PyTorch model is proven, and is in {outputs.save}."
        raise type(refused)(f"{refused} {instead}") from refused


def _metadata(subject: Subject, recipe: Recipe) -> dict[str, str]:
    """What the ONNX file says of itself."""
    criterion, budget = recipe.ranking.ranked_by, recipe.budget
    return {
        "slim_model_version": __version__,
        "slim_model_budget": budget.target or f"{budget.of} ratio={budget.share_removed:g}",
        **({} if budget.target else {"slim_model_ratio": str(budget.share_removed)}),
        "slim_model_criterion": criterion if isinstance(criterion, str) else criterion.__name__,
        "slim_model_source_sha256": subject.sha256,
    }


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
