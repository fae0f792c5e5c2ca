"""``slim-model schema``: what machines check recipes and reports with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from slim_model.errors import InputError
from slim_model.late import Late

SCHEMAS = {
    "recipe": Late("recipe_files.schema:recipe_schema"),
    "report": Late("reporting.report_schema:report_schema"),
    "quantized": Late("reporting.quantized_report:quantized_schema"),
}


def command(
    name: Annotated[str, typer.Argument(metavar="|".join(SCHEMAS), help="Of which file.")],
) -> None:
    """Print the JSON Schema of recipe files, or of what --report writes, here or of quantize."""
    if name not in SCHEMAS:
        raise InputError(f"there is no schema of '{name}'; there are: {', '.join(SCHEMAS)}.")
    typer.echo(json.dumps(SCHEMAS[name](), indent=1))
