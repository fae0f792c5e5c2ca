"""``slim-model profile``: the latency of single layers, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slim_model.cli.parameters import Section, command_of
from slim_model.cli.printed import PRINTED
from slim_model.cli.status import LogOptions, status
from slim_model.cli.streams import Screen
from slim_model.graph.options import TracingOptions
from slim_model.loading.source import Source, SourceOptions
from slim_model.measuring.options import RUNTIME_NAMES
from slim_model.options import group_of


def profile_command(
    options: dict[str, Any],
    source: Annotated[Path | None, typer.Argument(metavar="[IN]", help="The model whose layers are timed. Without it only the width step is learned.")] = None,
    runtime: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(RUNTIME_NAMES)}.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the measured runs.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Examples in a run.")] = 1,
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Of weights and inputs.")] = "float32",
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the table lies. Default: the folder for caches of this system.")] = None,
) -> None:  # fmt: skip
    """Measure what each layer takes at many widths on this machine, and which widths suit it.

    Stopped, it goes on where it was. --multiple-of auto uses the width step from then on.
    """
    from slim_model.commands.profile import ProfileJob, learn
    from slim_model.reporting.latency_table import show_learned

    job = ProfileJob(
        source=Source(source, group_of(SourceOptions, options)) if source else None,
        tracing=group_of(TracingOptions, options),
        runtime=runtime,
        threads=threads,
        batch=batch,
        dtype=dtype,
        cache=cache,
    )
    logging = group_of(LogOptions, options)
    logging.keep_apart(*filter(None, [source]))
    with status(logging) as progress:
        learned = learn(job, progress)
    show_learned(learned, Screen(quiet=logging.quiet))


command = command_of(
    profile_command, [Section("Model in", SourceOptions), Section("Model in", TracingOptions), PRINTED]
)
