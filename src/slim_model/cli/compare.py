"""``slim-model compare``: reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from slim_model.cli.streams import Screen


def command(
    files: Annotated[list[Path], typer.Argument(metavar="A.json [B.json ...]", help="Reports that --report wrote.")],
    html: Annotated[Path | None, typer.Option("--html", metavar="F.html", help="Also a page: of one report, or of several side by side.")] = None,
) -> None:  # fmt: skip
    """Show the reports of runs side by side, in a table or as a page."""
    from slim_model.commands.compare import read_reports
    from slim_model.commands.outputs import keep_apart, publish
    from slim_model.reporting.comparison_table import show_comparison
    from slim_model.reporting.html.page import comparison_page, html_page

    keep_apart(files, [html] if html else [])
    reports = read_reports(files)
    console = Screen()
    show_comparison(reports, console)
    if html:
        publish(html, html_page(*reports.values()) if len(reports) == 1 else comparison_page(reports))
        console.print(Text(f"wrote {html}"))
