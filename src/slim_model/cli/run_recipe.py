"""``slim-model run RECIPE``: the main command, with its options from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slim_model.cli.parameters import Style, command_of
from slim_model.cli.slim import EVERY_SECTION, carry_out
from slim_model.cli.status import LogOptions
from slim_model.commands.outputs import keep_apart
from slim_model.options import group_of
from slim_model.recipe_files.read import read_job


def run_command(
    file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: .toml, .yaml or .json; or the report.json of a run to repeat.")],
    options: dict[str, Any],
    source: Annotated[Path | None, typer.Option(metavar="IN", help="Take this model, not the one that RECIPE names.")] = None,
    onnx: Annotated[Path | None, typer.Option(metavar="OUT.onnx", help="Write there, not where RECIPE says.")] = None,
) -> None:  # fmt: skip
    """Do what a recipe file says. Options given beside it take the place of those in it."""
    logging = group_of(LogOptions, options)
    job = read_job(file, options, source=source, target=onnx)
    logging.keep_apart(file)
    # A recipe may be written again by its run, as may the report that is repeated; nothing else takes its place.
    own = (job.outputs.write_recipe, job.outputs.report if job.source.sha256 else None)
    keep_apart([file], [place for place in (job.target, *job.outputs.places) if place not in own])
    carry_out(job, logging)


command = command_of(run_command, EVERY_SECTION, basics_first=True, style=Style.GIVEN)
