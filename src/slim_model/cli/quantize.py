"""``slim-model quantize``: an ONNX file as int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from slim_model.cli.parameters import Section, command_of
from slim_model.cli.printed import PRINTED
from slim_model.cli.status import LogOptions, status
from slim_model.cli.streams import Screen
from slim_model.data.options import DataOptions
from slim_model.loading.source import SourceOptions
from slim_model.measuring.options import MeasuringOptions
from slim_model.options import group_of
from slim_model.quantizing.options import QuantizingOptions
from slim_model.recipe import Gates, Recipe


def quantize_command(
    source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="An fp32 model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="Appears where int8 is right on data, and faster here.")],
    options: dict[str, Any],
    report: Annotated[Path | None, typer.Option(metavar="R.json", help="What was tried, for machines.")] = None,
) -> None:  # fmt: skip
    """Write an ONNX file as int8, in the form that is fastest here and right on held-out data."""
    data, quantizing = group_of(DataOptions, options), group_of(QuantizingOptions, options)
    gates = group_of(Gates, options)

    from slim_model.commands.quantize import QuantizeJob, quantize_file
    from slim_model.reporting.int8_table import show_int8

    names = ("bench", "threads", "seed")
    job = QuantizeJob(
        source, out, data, quantizing, SourceOptions(inputs=options["inputs"]), gates.max_drop, report=report,
        **{name: options[name] for name in names},
    )  # fmt: skip
    logging = group_of(LogOptions, options)
    logging.keep_apart(source, out, *filter(None, [report]))
    with status(logging) as progress:
        result, notes = quantize_file(job, progress)
    console = Screen(quiet=logging.quiet)
    show_int8(result, console)
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"))
    console.print(Text(f"wrote {', '.join(str(place) for place in (out, report) if place)}"))


command = command_of(
    quantize_command,
    [
        Section("Data", DataOptions),
        Section("Data", SourceOptions, ("inputs",)),
        Section("What is written", QuantizingOptions, ("int8_form", "min_agreement", "int8_anyway")),
        Section("What is written", Gates, ("max_drop",)),
        Section("Measuring", MeasuringOptions, ("bench", "threads")),
        Section("Data", Recipe),
        PRINTED,
    ],
)
