"""``slim-model profile``: the latency of single layers, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slim_model.cli.options import status
from slim_model.measuring.runtimes import RUNTIMES


def profile_command(
    source: Annotated[Path | None, typer.Argument(metavar="[IN]", help="The model whose layers are timed. Without it only the width step is learned.")] = None,
    runtime: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(RUNTIMES)}.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the measured runs.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Examples in a run.")] = 1,
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Of weights and inputs.")] = "float32",
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the table lies. Default: the folder for caches of this system.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Example input, where it cannot be known (one per input).")] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside IN. Only for files you made.")] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.")] = None,
) -> None:  # fmt: skip
    """Measure what each layer takes at many widths on this machine, and which widths suit it.

    Stopped, it goes on where it was. --multiple-of auto uses the width step from then on.
    """
    from slim_model.commands.profile import ProfileJob, learn
    from slim_model.loading.source import Loading
    from slim_model.reporting.latency_table import show_learned

    console = Console()
    job = ProfileJob(
        source, runtime, threads, batch, dtype, cache, Loading(tuple(inputs or ()), arch, trust_pickle, code)
    )
    with status(console) as progress:
        learned = learn(job, progress)
    show_learned(learned, console)
