"""``slim-model plan FOLDER``: what would go, before anyone has fetched the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slim_model.cli.streams import harmless
from slim_model.strict_json import strict_json


def command(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|config.json", help="A folder of transformers, or its configuration alone.")],
    ratio: Annotated[float, typer.Option(metavar="X", min=0.0, max=1.0, help="Fraction of each width that is removed.")] = 0.5,
    multiple_of: Annotated[int | None, typer.Option("--multiple-of", min=1, metavar="N", help="MLP channels are rounded to multiples of N. Default: 8, or what there is of it.")] = None,
    residual: Annotated[bool, typer.Option("--residual", help="hidden_size becomes smaller, too, as of a run.")] = False,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="F", help="Everything, for machines.")] = None,
) -> None:  # fmt: skip
    """Say what a folder of transformers would lose. No weight is read, nothing is written."""
    from slim_model.commands.outputs import check_output_paths, publish
    from slim_model.commands.plan import plan_lines, plan_record, plan_without_weights

    check_output_paths(source, [as_json] if as_json else [])
    plan = plan_without_weights(source, ratio, multiple_of, residual=residual)
    typer.echo(harmless("\n".join(plan_lines(plan))))
    if as_json:
        publish(as_json, strict_json(plan_record(plan)))
