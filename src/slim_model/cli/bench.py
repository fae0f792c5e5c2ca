"""``slim-model bench``: the latency of whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slim_model.cli.options import counts, status
from slim_model.errors import InputError
from slim_model.measuring.runtimes import RUNTIMES


def bench_command(
    files: Annotated[list[Path] | None, typer.Argument(metavar="A [B ...]", help="Models to compare: .onnx, or .pt2, .pt and what else the main command reads. The first of a kind is what the others are compared with.")] = None,
    runtime: Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"What runs them (repeat): all, {', '.join(RUNTIMES)}. Default: onnxruntime, or pytorch.")] = None,
    runtimes: Annotated[bool, typer.Option("--runtimes", help="List the runtimes, and what is missing for each.")] = False,
    batch: Annotated[str | None, typer.Option(metavar="N,...", help="Examples in a run. Default: 1, or what the file fixes.")] = None,
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads of the measured runs.")] = "1",
    per_op: Annotated[bool, typer.Option("--per-op", help="Also what each kind of operator takes.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="At most so many samples of each model.")] = 60,
    seconds: Annotated[float, typer.Option(help="At most so long for a runtime, batch and number of threads.")] = 10.0,
    json: Annotated[Path | None, typer.Option(metavar="F", help="Write the rows, one JSON object a line.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Sizes of an input that the file leaves open (one per input).")] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside the files. Only for files you made.")] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.")] = None,
) -> None:  # fmt: skip
    """Time models against each other, in turns, in every runtime you name."""
    from slim_model.commands.bench import BenchJob, bench
    from slim_model.loading.source import Loading
    from slim_model.reporting.bench_table import list_runtimes, show_bench

    console = Console()
    if runtimes:
        list_runtimes(console)
        return
    if not files:
        raise InputError("bench needs files to time: slim-model bench dense.onnx slim.onnx.")
    loading = Loading(tuple(inputs or ()), arch, trust_pickle, code)
    sizes = counts("--batch", batch), counts("--threads", threads)
    job = BenchJob(tuple(files), tuple(runtime or ()), *sizes, loading, per_op, rounds, seconds, json)
    with status(console) as progress:
        found = bench(job, progress)
    show_bench(found, console)
