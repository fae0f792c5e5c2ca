"""``slim-model run RECIPE``: the main command, with its options from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slim_model.cli.parameters import Style, command_of
from slim_model.cli.slim import EVERY_SECTION, carry_out
from slim_model.cli.status import LogOptions
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
    carry_out(read_job(file, options, source=source, target=onnx), logging)


command = command_of(run_command, EVERY_SECTION, basics_first=True, style=Style.GIVEN)
