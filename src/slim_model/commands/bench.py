"""Files of models -> what each takes in each runtime, and which is faster; a row says all it depends on."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slim_model.commands.outputs import check_output_paths, publish
from slim_model.cost.onnx_energy import estimate_energy
from slim_model.errors import InputError
from slim_model.loading.input_spec import describe_error as describe_error
from slim_model.loading.model_file import Artifact, open_artifact, spec_of_input
from slim_model.loading.source import SourceOptions
from slim_model.measuring.energy_meter import METERS, Energy, measure_energy
from slim_model.measuring.machine import commit, environment
from slim_model.measuring.peak_memory import measure_memory
from slim_model.measuring.runtimes import RUNTIMES, Runtime, runtime_named, version_of
from slim_model.measuring.timing import Comparison, measure, without_gc
from slim_model.progress import Progress
from slim_model.reporting.bench_table import Bench
from slim_model.strict_json import strict_json
from slim_model.version import __version__

DEFAULT = {"onnx": "onnxruntime", "module": "pytorch"}
"""The runtime of each kind of file, where none is named."""


@dataclass(frozen=True, slots=True)
class BenchJob:
    """The arguments of ``slim-model bench``; ``runtimes`` "all" stands for every row of RUNTIMES."""

    files: tuple[Path, ...]
    runtimes: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (1,)
    loading: SourceOptions = field(default_factory=SourceOptions)
    per_op: bool = False
    rounds: int = 60
    seconds: float = 10.0
    json: Path | None = None


def bench(job: BenchJob, progress: Progress) -> Bench:
    """Time the files, each kind (ONNX, PyTorch) against its first."""
    if any(n < 1 for n in (*job.batches, *job.threads)):
        raise InputError("--batch and --threads are numbers from 1, with commas between them: --batch 1,8,64.")
    # Measuring takes minutes: what can be refused is refused ahead of it.
    for path in job.files:
        check_output_paths(path, filter(None, [job.json]))
    progress("reading the files")
    files = [open_artifact(path, job.loading) for path in job.files]
    result = Bench([], [], [])
    for row in _chosen(job, files):
        rivals = [file for file in files if file.kind == row.artifact]
        # What cannot run is told in the table, and the others go on.
        if (reason := row.available()) is not None:
            result.absent.append((row.name, reason))
        elif not rivals:
            needed = "an .onnx file" if row.artifact == "onnx" else "a PyTorch file (.pt2, .pt)"
            result.absent.append((row.name, f"it runs {needed}, and none was given"))
        else:
            _run_row(job, row, rivals, result, progress)
    if not result.rows:
        why = "; ".join(f"{name}: {reason}" for name, reason in result.absent)
        raise InputError(f"nothing could be measured. {why}.")
    if job.json:
        publish(job.json, "".join(strict_json(row, indent=None) for row in result.rows))
    return result


def _chosen(job: BenchJob, files: Sequence[Artifact]) -> list[Runtime]:
    if "all" in job.runtimes:
        kinds = {file.kind for file in files}
        return [row for row in RUNTIMES.values() if row.artifact in kinds]
    names = job.runtimes or tuple(dict.fromkeys(DEFAULT[file.kind] for file in files))
    return [runtime_named(name) for name in names]


def _run_row(job: BenchJob, row: Runtime, rivals: list[Artifact], result: Bench, progress: Progress) -> None:
    """All batches and thread counts of one runtime; what fails in it is told, and the others go on."""
    for batch in job.batches or (rivals[0].fixed_batch or 1,):
        for threads in job.threads:
            shapes = _same_inputs(rivals, batch)
            progress(f"measuring in {row.name}, batch {batch}, {threads} thread{'s' * (threads > 1)}")
            try:
                result.rows.extend(_cell(job, row, rivals, batch, threads, shapes, result.notes))
            except Exception as error:  # whatever a runtime says of a model it cannot run
                result.absent.append((row.name, f"failed at batch {batch}: {describe_error(error)}"))
                return


def _same_inputs(rivals: Sequence[Artifact], batch: int) -> Any:
    """The shapes all of them take, or InputError."""
    shapes = [file.shapes(batch) for file in rivals]
    for file, other in zip(rivals, shapes, strict=True):
        if other != shapes[0]:
            raise InputError(
                f"{rivals[0].path} takes {', '.join(spec_of_input(shapes[0]))} and {file.path} takes "
                f"{', '.join(spec_of_input(other))}: they cannot be compared."
            )
    return shapes[0]


def _cell(
    job: BenchJob, row: Runtime, rivals: list[Artifact], batch: int, threads: int, shapes: Any, notes: list[str]
) -> list[dict[str, Any]]:
    inputs = rivals[0].example(batch)
    compared = measure(
        row, [f.runnable for f in rivals], inputs, threads=threads, rounds=job.rounds, budget_s=job.seconds
    )
    rows = []
    for file, comparison, operators in zip(
        rivals, compared, _operators(job, row, rivals, inputs, threads, notes), strict=True
    ):
        # The meter is the whole package's: each file runs alone for it, after all were timed in turns.
        with without_gc():
            joules = measure_energy(METERS[row.device], functools.partial(row.prepare, file.runnable, inputs, threads))
        rows.append(
            _timed(file, comparison, rivals[0])
            | {"dtype": file.dtype, "inputs": spec_of_input(shapes), "runtime_version": version_of(*row.packages)}
            | _memory(job, row, file, batch, threads, notes)
            | {"joules_per_run": joules.joules, "energy_source": joules.source}
            | {"estimated_energy_macs": _estimated(file, joules, shapes)}
            | {"operators": operators}
            | _birth()
        )
    return rows


def _estimated(file: Artifact, measured: Energy, shapes: Any) -> float | None:
    """Where no meter told it, and the file is one that can be counted."""
    if measured.joules is not None or file.kind != "onnx":
        return None
    return estimate_energy(file.path, [shape for shape, _ in shapes])


def _timed(file: Artifact, comparison: Comparison, first: Artifact) -> dict[str, Any]:
    """The first file is the reference: it has no speed-up."""
    own = comparison.slim
    row = {"file": file.path.name, "sha256": file.sha256} | asdict(own)
    row |= {"examples_per_s": own.batch * 1e3 / own.median_ms}
    if file is first:
        return row | {"reference": None, "speedup": None, "speedup_low": None, "speedup_high": None, "verdict": None}
    return row | {
        "reference": first.path.name,
        "speedup": comparison.speedup,
        "speedup_low": comparison.speedup_low,
        "speedup_high": comparison.speedup_high,
        "verdict": comparison.verdict,
    }


def _memory(job: BenchJob, row: Runtime, file: Artifact, batch: int, threads: int, notes: list[str]) -> dict[str, Any]:
    try:
        return asdict(measure_memory(row.name, file.path, job.loading, batch=batch, threads=threads))
    except Exception as error:  # the process may be killed for its memory, or the runtime raise what it likes
        notes.append(f"{file.path.name}, {row.name}: peak memory is not known: {describe_error(error)}")
        return {"peak_bytes": None, "own_bytes": None, "device_bytes": None}


def _operators(
    job: BenchJob, row: Runtime, rivals: list[Artifact], inputs: Any, threads: int, notes: list[str]
) -> list[list[dict[str, Any]] | None]:
    """Those of each file; None where nobody asked, or the runtime does not tell."""
    if job.per_op and row.per_op is None:
        notes.append(f"{row.name} does not tell what its operators take")
    if not job.per_op or row.per_op is None:
        return [None] * len(rivals)
    found = row.per_op([file.runnable for file in rivals], inputs, threads)
    return [[asdict(operator) for operator in operators] for operators in found]


def _birth() -> dict[str, Any]:
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    return {"slim_model": __version__, "commit": commit(), "date": date, "environment": environment()}
