"""``slim-model IN OUT.onnx``. Its options are the fields of the recipe's groups; nothing is decided here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from slim_model.cli.parameters import Section, command_of
from slim_model.cli.printed import PRINTED
from slim_model.cli.status import LogOptions, status
from slim_model.cli.streams import Screen
from slim_model.commands.outputs import check_output_paths, keep_apart
from slim_model.export.options import OutputOptions
from slim_model.loading.file_form import first_look
from slim_model.loading.source import SourceOptions
from slim_model.options import group_of
from slim_model.recipe import GROUPS, Recipe
from slim_model.recipe_files.job import Job, files_read, job_of
from slim_model.version import __version__

_REMOVED, _DATA = "What is removed", "Data, and recovery with it"
_TITLES = {
    "budget": _REMOVED,
    "effort": _DATA,
    "ranking": _REMOVED,
    "coupling": _REMOVED,
    "factoring": _REMOVED,
    "data": _DATA,
    "recovery": _DATA,
    "training": "Training afterwards",
    "quantizing": "int8",
    "gates": "What must be reached",
    "measuring": "Measuring",
    "tracing": "Model in, model out",
}
"""Of the recipe's groups, in the order of the help."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slim-model {__version__}")
        raise typer.Exit


def slim_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A module, state dict, checkpoint, .safetensors, .pt2 or TorchScript file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="Appears only when every check has passed.")],
    options: dict[str, Any],
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)] = False,
) -> None:  # fmt: skip
    """Remove the least important channels of a trained model, prove the result, write it as ONNX and measure it."""
    job = job_of(options, source, out)  # what is wrong is said before PyTorch is imported
    carry_out(job, group_of(LogOptions, options))


def carry_out(job: Job, logging: LogOptions) -> None:
    """Run ``job``, show its report and name the files it wrote."""
    logging.keep_apart(job.source.path, *files_read(job), job.target, *job.outputs.places)
    keep_apart(files_read(job), [job.target, *job.outputs.places])
    if job.source.path.is_dir() and job.target.suffix != ".onnx":
        _carry_out_folder(job, logging)
        return
    first_look(job.source.path, trusted=job.source.options.trust_pickle)
    check_output_paths(job.source.path, [job.target, *job.outputs.places])
    # Only now, as it takes seconds to import PyTorch.
    from slim_model.commands.slim import run_job
    from slim_model.commands.tracking import tracked
    from slim_model.reporting.headline import figures_for_machines
    from slim_model.reporting.terminal import show

    log, notes = status(logging), list[str]()
    with log as progress:
        with tracked(job, notes.append) as tell:
            report = run_job(job, progress, tell=tell)
        if report is None:
            return
        written = [str(place) for place in (job.target, *job.outputs.places)]
        log.result(f"wrote {', '.join(written)}", wrote=written, figures=figures_for_machines(report.as_dict()))
    if not logging.quiet:
        console = Screen()
        show(report, console)
        for note in notes:
            console.print(Text(f"note: {note}", style="yellow"))
        console.print(Text(f"wrote {', '.join(written)}"))


def _carry_out_folder(job: Job, logging: LogOptions) -> None:
    """The same where IN and OUT are folders."""
    from slim_model.commands.slim_folder import run_folder_job
    from slim_model.folders.report import lines

    log = status(logging)
    with log as progress:
        report = run_folder_job(job, progress)
        log.result(f"wrote {job.target}", wrote=[str(p) for p in (job.target, *job.outputs.places)], figures=report)
    if not logging.quiet:
        console = Screen()
        for line in (*lines(report), f"wrote {job.target}"):
            console.print(Text(line), soft_wrap=True)


EVERY_SECTION = [
    *(Section(title, GROUPS[name]) for name, title in _TITLES.items()),
    Section(_REMOVED, Recipe),
    Section("Model in, model out", SourceOptions),
    Section("Model in, model out", OutputOptions),
    PRINTED,
]
"""All options of a run."""

command = command_of(slim_command, EVERY_SECTION, basics_first=True)
