"""Reports of several runs -> one table, a row a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slim_model.reporting.headline import Figure, figures_of


def show_comparison(reports: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print the figures of ``reports``, by the names of their files; those that all dense models share stand above."""
    rows = {name: {figure.name: figure for figure in figures_of(report)} for name, report in reports.items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in names:
        table.add_column(Text(name), justify="right")
    for name, row in rows.items():
        spaced = Text(name.replace(",", ", "))  # lines break between the values of a point
        table.add_row(spaced, *(_cell(row[n]) if n in row else Text() for n in names))
    console.print(table)


def _cell(figure: Figure) -> Text:
    return Text(figure.slim).append(f"\n{figure.change}", style="dim")
