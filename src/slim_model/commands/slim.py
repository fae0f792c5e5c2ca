"""``slim-model IN OUT.onnx``: from the file IN to the files OUT.onnx, --save and --report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from slim_model import distributed
from slim_model.atomic_write import beside
from slim_model.commands.outputs import check_places, publish
from slim_model.errors import ExportError, InputError
from slim_model.export.check_onnx import check_onnx
from slim_model.export.eager_model import on_its_own
from slim_model.export.to_onnx import to_onnx
from slim_model.export.torch_files import check_format, save
from slim_model.graph.graph import first_of
from slim_model.loading.load import Subject, load
from slim_model.measuring.timing import Comparison, compare
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.progress import Progress
from slim_model.proof.own_module import small_module
from slim_model.recipe import Recipe
from slim_model.reporting.acceptance import check_gates
from slim_model.reporting.report import Report, make_report
from slim_model.training.resume import Resume
from slim_model.version import __version__

_WITHOUT_CLASS = ("exported program", "torchscript")


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of the command."""

    source: Path
    target: Path
    recipe: Recipe
    arch: str | None = None
    inputs: tuple[str, ...] = ()
    trust_pickle: bool = False
    code: Path | None = None
    save: Path | None = None
    report: Path | None = None
    opset: int | None = None
    bench: bool = True
    min_speedup: float | None = None


def run(job: Job, progress: Progress) -> Report | None:
    """load -> compile -> export, checked -> measure -> report -> gates -> save -> publish. Of several processes the
    first does all but compiling alone; the others have no report."""
    if job.save:
        check_format(job.save)
    if job.min_speedup is not None and not job.bench:
        raise InputError("--min-speedup needs the latency; leave out --no-bench.")
    check_places(job.source, filter(None, (job.target, job.save, job.report)))
    clock = _Clock()
    with clock("load"):
        progress(f"reading {job.source.name}")
        subject = load(
            job.source,
            arch=job.arch,
            inputs=job.inputs,
            trust_pickle=job.trust_pickle,
            code=job.code,
            seed=job.recipe.seed,
        )
    with clock("compile"):
        resume = Resume(job.target.with_name(f"{job.target.name}.finetune"))
        compiled = compile_model(
            subject.model, subject.inputs, job.recipe, program=subject.program, resume=resume, progress=progress
        )
    if distributed.rank() > 0:
        return None
    with clock("compile"):
        module, own = small_module(subject.model, compiled)
        written = on_its_own(compiled.small, module)
    with beside(job.target) as temporary:  # OUT.onnx appears when nothing can fail any more
        with clock("export"):
            progress("writing and checking ONNX")
            try:
                to_onnx(
                    *(written, temporary),
                    opset=job.opset,
                    metadata=_metadata(subject, job.recipe),
                    device=job.recipe.device,
                )
            except ExportError as refused:
                raise ExportError(f"{refused} {_instead(job, compiled, module, own)}") from refused
            error = check_onnx(temporary, written, onnx_batches(written, job.recipe.seed))
            size = temporary.stat().st_size
        with clock("measure"):
            measured = _measure(job, subject, compiled, module, temporary, progress) if job.bench else ([], None)
        report = make_report(
            compiled,
            job.recipe,
            module_is_own=own or subject.kind in _WITHOUT_CLASS,
            source={"name": job.source.name, "sha256": subject.sha256, "kind": subject.kind},
            files=(measured[1] or compiled.dense_cost.bytes, size),
            onnx_error=error,
            warnings=subject.notes,
            latency=measured[0],
            seconds=clock.seconds,
        )
        if job.report:
            publish(job.report, report.as_json())
        check_gates(report, job.recipe.max_drop, job.min_speedup)
        if job.save:
            save(compiled, module, own, job.save, job.recipe)
    resume.remove(job.recipe.iterations)
    return report


def _instead(job: Job, compiled: Compiled, module: nn.Module, own: bool) -> str:
    """The small model is proven and is saved where that was asked for; what to say of it."""
    if job.save is None:
        return "The small PyTorch model is proven: --save small.safetensors or small.pt keeps it."
    save(compiled, module, own, job.save, job.recipe)
    return f"The small PyTorch model is proven, and is in {job.save}."


def _metadata(subject: Subject, recipe: Recipe) -> dict[str, str]:
    criterion = recipe.criterion if isinstance(recipe.criterion, str) else recipe.criterion.__name__
    return {
        "slim_model_version": __version__,
        "slim_model_budget": recipe.target or f"{recipe.of} ratio={recipe.ratio:g}",
        **({} if recipe.target else {"slim_model_ratio": str(recipe.ratio)}),
        "slim_model_criterion": criterion,
        "slim_model_source_sha256": subject.sha256,
    }


def _measure(
    job: Job, subject: Subject, compiled: Compiled, module: nn.Module, written: Path, progress: Progress
) -> tuple[list[Comparison], int]:
    """Dense against slim, in turns, in onnxruntime and in PyTorch; also the bytes of the dense ONNX file."""
    inputs = first_of(compiled.dense)
    suffix = "" if job.recipe.device == "cpu" else "-cuda"
    with tempfile.TemporaryDirectory() as folder:
        progress("exporting the dense model to compare with")
        dense = Path(folder) / "dense.onnx"
        to_onnx(
            *(on_its_own(compiled.dense, subject.model), dense),
            opset=job.opset,
            metadata={},
            device=job.recipe.device,
            weights_beside=True,
        )
        rows = []
        pairs = {"onnxruntime": (dense, written), "pytorch": (subject.model, module)}
        for runtime, (big, small) in pairs.items():
            progress(f"measuring latency in {runtime}")
            rows.append(compare(runtime + suffix, big, small, inputs, threads=job.recipe.threads))
        return rows, sum(file.stat().st_size for file in Path(folder).iterdir())


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
