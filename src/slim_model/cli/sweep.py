"""``slim-model sweep``: a recipe with several values of some options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from slim_model.cli.parameters import Style, command_of
from slim_model.cli.printed import PRINTED
from slim_model.cli.slim import EVERY_SECTION
from slim_model.cli.status import LogOptions, status
from slim_model.cli.streams import Screen
from slim_model.errors import GateError
from slim_model.options import group_of
from slim_model.recipe import GROUPS, Recipe
from slim_model.recipe_files.job import files_read
from slim_model.recipe_files.read import read_job


def sweep_command(
    file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, as for slim-model run.")],
    options: dict[str, Any],
    into: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the files of each point go. Default: OUT.onnx with .sweep.")] = None,
    best: Annotated[str | None, typer.Option(metavar="CONDITION", help="Write OUT.onnx: the fastest point that meets it, such as 'accuracy>=0.91'.")] = None,
    search: Annotated[int | None, typer.Option(metavar="N", min=1, help="Run N points alone, chosen by Optuna from what the earlier ones gave.")] = None,
    source: Annotated[Path | None, typer.Option(metavar="IN", help="Take this model, not the one that RECIPE names.")] = None,
    onnx: Annotated[Path | None, typer.Option(metavar="OUT.onnx", help="Write there, not where RECIPE says.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="F.html", help="Also a page of all points.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="S.md", help="Also the figures of all points as Markdown.")] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Also log each point with MLflow.")] = None,
) -> None:  # fmt: skip
    """Run a recipe with several values of some options: --ratio 0.3,0.5 --criterion l1,l2 makes four points.

    Stopped, it goes on where it was. Values that hold commas themselves are given one by one, the option repeated.
    """
    from slim_model.commands.outputs import keep_apart, publish
    from slim_model.commands.sweep import Sweep, no_outputs, run_sweep
    from slim_model.reporting.comparison_table import show_comparison
    from slim_model.reporting.condition import read_condition
    from slim_model.reporting.html.page import comparison_page
    from slim_model.reporting.markdown.documents import comparison

    condition = read_condition(best) if best else None
    fixed = {name: values[0] for name, values in options.items() if len(values) == 1}
    job = read_job(file, fixed, source=source, target=onnx)
    outputs = job.outputs
    job = replace(job, outputs=replace(outputs, summary=summary or outputs.summary, mlflow=mlflow or outputs.mlflow))
    no_outputs(job.outputs)
    folder = into or job.target.with_suffix(".sweep")
    axes = {name: values for name, values in options.items() if len(values) > 1}
    logging = group_of(LogOptions, fixed)
    read, places = [file, job.source.path, *files_read(job)], [job.target, *job.outputs.places, *filter(None, [html])]
    logging.keep_apart(*read, *places)
    keep_apart(read, places)
    log = status(logging)
    with log as progress:
        swept = run_sweep(Sweep(job, axes, folder, condition, search), progress)
        log.result(f"wrote {len(swept.reports)} points in {folder}", best=swept.best, failed=list(swept.failed))
    console = Screen(quiet=logging.quiet)
    show_comparison(swept.reports, console)
    for name, error in swept.failed.items():
        console.print(Text(f"failed: {name}: {error}"))
    console.print(Text(f"wrote {len(swept.reports)} points in {folder}"))
    if html:
        publish(html, comparison_page(swept.reports))
        console.print(Text(f"wrote {html}"))
    if job.outputs.summary:
        publish(job.outputs.summary, comparison(swept.reports, swept.failed, swept.best))
        console.print(Text(f"wrote {job.outputs.summary}"))
    if swept.best:
        console.print(Text(f"wrote {job.target}: {swept.best}"))
    elif condition:
        raise GateError(f"no point meets {best}. {job.target} is as it was.")
    if swept.failed:
        raise GateError(f"{len(swept.failed)} of {len(swept.reports) + len(swept.failed)} points failed; see above.")


command = command_of(
    sweep_command,
    [*(section for section in EVERY_SECTION if section.group in (Recipe, *GROUPS.values())), PRINTED],
    basics_first=True,
    style=Style.SEVERAL,
)
