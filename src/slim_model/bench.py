"""bench: files of models -> what each takes in each runtime, and which is faster; a row says all it depends on."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slim_model.artifact import Artifact, Loading, artifact, describe
from slim_model.energy import Energy, energy
from slim_model.errors import InputError
from slim_model.estimate import estimated_energy
from slim_model.export import beside
from slim_model.guess import describe as describe_error
from slim_model.measure import Comparison, commit, environment, measure, quiet
from slim_model.memory import memory
from slim_model.runtimes import RUNTIMES, Runtime, known, version_of

Progress = Callable[[str], None]

DEFAULT = {"onnx": "onnxruntime", "module": "pytorch"}
"""The runtime of each kind of file, where none is named."""


@dataclass(frozen=True, slots=True)
class BenchJob:
    """The arguments of ``slim-model bench``; ``runtimes`` "all" stands for every row of RUNTIMES."""

    files: tuple[Path, ...]
    runtimes: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (1,)
    loading: Loading = field(default_factory=Loading)
    per_op: bool = False
    rounds: int = 60
    seconds: float = 10.0
    json: Path | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """``rows``: one for each file, runtime, batch and number of threads; ``absent``: a runtime and why it did not
    run; ``notes``: what else could not be had."""

    rows: list[dict[str, Any]]
    absent: list[tuple[str, str]]
    notes: list[str]


def bench(job: BenchJob, progress: Progress) -> Bench:
    """Time the files, each kind (ONNX, PyTorch) against its first."""
    if any(n < 1 for n in (*job.batches, *job.threads)):
        raise InputError("--batch and --threads are numbers from 1, with commas between them: --batch 1,8,64.")
    progress("reading the files")
    files = [artifact(path, job.loading) for path in job.files]
    found = Bench([], [], [])
    for row in _chosen(job, files):
        rivals = [file for file in files if file.kind == row.artifact]
        if (reason := row.available()) is not None:
            found.absent.append((row.name, reason))
        elif not rivals:
            needed = "an .onnx file" if row.artifact == "onnx" else "a PyTorch file (.pt2, .pt)"
            found.absent.append((row.name, f"it runs {needed}, and none was given"))
        else:
            _run_row(job, row, rivals, found, progress)
    if not found.rows:
        why = "; ".join(f"{name}: {reason}" for name, reason in found.absent)
        raise InputError(f"nothing could be measured. {why}.")
    if job.json:
        with beside(job.json) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in found.rows))
    return found


def _chosen(job: BenchJob, files: Sequence[Artifact]) -> list[Runtime]:
    if "all" in job.runtimes:
        kinds = {file.kind for file in files}
        return [row for row in RUNTIMES.values() if row.artifact in kinds]
    names = job.runtimes or tuple(dict.fromkeys(DEFAULT[file.kind] for file in files))
    return [known(name) for name in names]


def _run_row(job: BenchJob, row: Runtime, rivals: list[Artifact], found: Bench, progress: Progress) -> None:
    """All batches and thread counts of one runtime; what fails in it is told, and the others go on."""
    for batch in job.batches or (rivals[0].fixed_batch or 1,):
        for threads in job.threads:
            shapes = _same_inputs(rivals, batch)
            progress(f"measuring in {row.name}, batch {batch}, {threads} thread{'s' * (threads > 1)}")
            try:
                found.rows.extend(_cell(job, row, rivals, batch, threads, shapes, found.notes))
            except Exception as error:  # whatever a runtime says of a model it cannot run
                found.absent.append((row.name, f"failed at batch {batch}: {describe_error(error)}"))
                return


def _same_inputs(rivals: Sequence[Artifact], batch: int) -> Any:
    """The shapes all of them take, or InputError."""
    shapes = [file.shapes(batch) for file in rivals]
    for file, other in zip(rivals, shapes, strict=True):
        if other != shapes[0]:
            raise InputError(
                f"{rivals[0].path} takes {', '.join(describe(shapes[0]))} and {file.path} takes "
                f"{', '.join(describe(other))}: they cannot be compared."
            )
    return shapes[0]


def _cell(
    job: BenchJob, row: Runtime, rivals: list[Artifact], batch: int, threads: int, shapes: Any, notes: list[str]
) -> list[dict[str, Any]]:
    inputs = rivals[0].example(batch)
    compared = measure(row, [f.held for f in rivals], inputs, threads=threads, rounds=job.rounds, budget_s=job.seconds)
    rows = []
    for file, comparison in zip(rivals, compared, strict=True):
        with quiet():
            joules = energy(row.device, functools.partial(row.prepare, file.held, inputs, threads))
        rows.append(
            _timed(file, comparison, rivals[0])
            | {"dtype": file.dtype, "inputs": describe(shapes), "runtime_version": version_of(*row.packages)}
            | _memory(job, row, file, batch, threads, notes)
            | {"joules_per_run": joules.joules, "energy_source": joules.source}
            | {"estimated_energy_macs": _estimated(file, joules, shapes)}
            | {"operators": _operators(job, row, file, inputs, threads, notes)}
            | _birth()
        )
    return rows


def _estimated(file: Artifact, measured: Energy, shapes: Any) -> float | None:
    """Where no meter told it, and the file is one that can be counted."""
    if measured.joules is not None or file.kind != "onnx":
        return None
    return estimated_energy(file.path, [shape for shape, _ in shapes])


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
        return asdict(memory(row.name, file.path, job.loading, batch=batch, threads=threads))
    except Exception as error:  # the process may be killed for its memory, or the runtime raise what it likes
        notes.append(f"{file.path.name}, {row.name}: peak memory is not known: {describe_error(error)}")
        return {"peak_bytes": None, "own_bytes": None, "device_bytes": None}


def _operators(
    job: BenchJob, row: Runtime, file: Artifact, inputs: Any, threads: int, notes: list[str]
) -> list[dict[str, Any]] | None:
    if not job.per_op:
        return None
    if row.per_op is None:
        notes.append(f"{row.name} does not tell what its operators take")
        return None
    return [asdict(operator) for operator in row.per_op(file.held, inputs, threads)]


def _birth() -> dict[str, Any]:
    from slim_model import __version__

    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    return {"slim_model": __version__, "commit": commit(), "date": date, "environment": environment()}


# -- for people -----------------------------------------------------------------------------------------------------


def list_runtimes(console: Console) -> None:
    """Every row of RUNTIMES, and why it cannot be used here where it cannot."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("runtime", "device", "runs", ""):
        table.add_column(name, no_wrap=bool(name))
    for row in RUNTIMES.values():
        reason = row.available()
        state = Text(f"version {version_of(*row.packages)}") if reason is None else Text(reason, style="dim")
        table.add_row(row.name, row.device, ".onnx" if row.artifact == "onnx" else ".pt2, .pt", state)
    console.print(table)


def show_bench(found: Bench, console: Console) -> None:
    """A block for each runtime, batch and number of threads, then what is not a number."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in found.rows:
        threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        blocks.setdefault(f"{row['runtime']}, batch {row['batch']}, {threads}", []).append(row)
    for title, rows in blocks.items():
        console.print(Text(f"{title}: median (p10-p90), throughput, peak memory", style="bold"))
        for row in rows:
            console.print(Text("\n".join(_lines(row))))
        for row in rows:
            _show_operators(row, console)
    for source in dict.fromkeys(row["energy_source"] for row in found.rows):
        console.print(Text(f"energy: {source}", style="dim"))
    for name, reason in found.absent:
        console.print(Text(f"{name}: {reason}", style="yellow"))
    for note in dict.fromkeys(found.notes):
        console.print(Text(f"note: {note}", style="yellow"))


def _lines(row: dict[str, Any]) -> list[str]:
    """The file, what it takes, and how that is against the reference."""
    numbers = [
        f"{row['median_ms']:9.2f} ms ({row['p10_ms']:.2f}-{row['p90_ms']:.2f})",
        f"{row['examples_per_s']:,.1f} examples/s",
    ]
    if row["own_bytes"] is not None:
        numbers.append(f"{(row['device_bytes'] or row['own_bytes']) / 1e6:,.0f} MB")
    if row["joules_per_run"] is not None:
        numbers.append(f"{row['joules_per_run']:.3g} J")
    elif row["estimated_energy_macs"] is not None:
        numbers.append(f"energy as of {row['estimated_energy_macs'] / 1e6:,.0f} M MACs (estimated)")
    lines = [f"  {row['file']}", "  " + ", ".join(numbers)]
    if row["verdict"]:
        low, high = row["speedup_low"], row["speedup_high"]
        shown = row["verdict"] if low <= 1 <= high else f"{row['speedup']:.2f}x {row['verdict']}"
        lines.append(f"{'':13}{shown}, 95 %: {low:.2f}-{high:.2f}")
    return lines


def _show_operators(row: dict[str, Any], console: Console, most: int = 8) -> None:
    if not row["operators"]:
        return
    total = sum(operator["ms"] for operator in row["operators"])
    console.print(Text(f"{row['file']} in {row['runtime']}: {total:.3f} ms in operators", style="bold"))
    for operator in row["operators"][:most]:
        share = operator["ms"] / total if total else 0.0
        console.print(Text(f"  {operator['name']:<24}{operator['nodes']:>5} x {operator['ms']:>9.3f} ms {share:>5.0%}"))
