"""``slim-model bench``: the latency of whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slim_model.cli.parameters import Section, command_of
from slim_model.cli.printed import PRINTED
from slim_model.cli.status import LogOptions, status
from slim_model.cli.streams import Screen
from slim_model.errors import InputError
from slim_model.loading.source import SourceOptions
from slim_model.measuring.options import RUNTIME_NAMES
from slim_model.options import group_of, read_counts


def bench_command(
    options: dict[str, Any],
    files: Annotated[list[Path] | None, typer.Argument(metavar="A [B ...]", help="Models to compare: .onnx, or .pt2, .pt and what else the main command reads. The first of a kind is what the others are compared with.")] = None,
    runtime: Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"What runs them (repeat): all, {', '.join(RUNTIME_NAMES)}. Default: onnxruntime, or pytorch.")] = None,
    runtimes: Annotated[bool, typer.Option("--runtimes", help="List the runtimes, and what is missing for each.")] = False,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Examples in a run. Default: 1, or what the file fixes.")] = "",
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads of the measured runs.")] = "1",
    per_op: Annotated[bool, typer.Option("--per-op", help="Also what each kind of operator takes.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="At most so many samples of each model.")] = 60,
    seconds: Annotated[float, typer.Option(help="At most so long for a runtime, batch and number of threads.")] = 10.0,
    json: Annotated[Path | None, typer.Option(metavar="F", help="Write the rows, one JSON object a line.")] = None,
) -> None:  # fmt: skip
    """Time models against each other, in turns, in every runtime you name."""
    from slim_model.commands.bench import BenchJob, bench
    from slim_model.reporting.bench_table import list_runtimes, show_bench

    console = Screen()
    if runtimes:
        list_runtimes(console)
        return
    if not files:
        raise InputError("bench needs files to time: slim-model bench dense.onnx slim.onnx.")
    job = BenchJob(
        files=tuple(files),
        runtimes=tuple(runtime or ()),
        batches=read_counts("--batch", batch),
        threads=read_counts("--threads", threads),
        loading=group_of(SourceOptions, options),
        per_op=per_op,
        rounds=rounds,
        seconds=seconds,
        json=json,
    )
    logging = group_of(LogOptions, options)
    logging.keep_apart(*files, *filter(None, [json]))
    with status(logging) as progress:
        result = bench(job, progress)
    if not logging.quiet:
        show_bench(result, console)


command = command_of(bench_command, [Section("Models in", SourceOptions), PRINTED])
