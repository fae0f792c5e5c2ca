"""Reports -> Markdown: a summary of one or of several for the page of a CI job, or a model card for the Hugging Face
Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from slim_model.options import options_of
from slim_model.recipe import GROUPS
from slim_model.recipe_files.write import toml_of
from slim_model.reporting.headline import figures_of, tested_accuracy


def _cell(text: object) -> str:
    """``text`` as it stands in a cell of a table: in one line, and nothing of it is markup."""
    line = " ".join(str(text).split())
    for mark in "\\`*_{}[]<>|#~":
        line = line.replace(mark, f"\\{mark}")
    return line


_TEMPLATES = Environment(
    loader=PackageLoader("slim_model.reporting", "markdown"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["cell"] = _cell


def summary(report: Mapping[str, Any], unmet: Sequence[str] = ()) -> str:
    """The figures of ``report`` (as ``Report.as_dict`` has it), what was kept, and the gates that are ``unmet``."""
    return _TEMPLATES.get_template("summary.md.j2").render(report=report, figures=figures_of(report), unmet=unmet)


def comparison(
    reports: Mapping[str, Mapping[str, Any]], failed: Mapping[str, Exception], best: str | None = None
) -> str:
    """The figures of ``reports``, a row a point of a sweep; why others ``failed``. ``best`` is the one written."""
    rows = {point: {figure.name: figure for figure in figures_of(report)} for point, report in reports.items()}
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    return _TEMPLATES.get_template("comparison.md.j2").render(rows=rows, names=names, failed=failed, best=best)


def model_card(report: Mapping[str, Any], file: str) -> str:
    """A model card of ``file``, the ONNX file that ``report`` tells of."""
    return _TEMPLATES.get_template("model_card.md.j2").render(
        report=report,
        file=file,
        figures=figures_of(report),
        accuracy=tested_accuracy(report),
        recipe=toml_of(_chosen(report["recipe"])),
    )


def _chosen(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of ``recipe`` with the options that are not at their defaults. Places are left out: a card is read
    by others."""
    sections: dict[str, Any] = {"seed": recipe["seed"], "source": {}, "outputs": {}}
    for name, group in GROUPS.items():
        rows = [field for field, about in options_of(group) if about.kind is not Path and not about.move]
        values = {row.name: recipe[name].get(row.name) for row in rows}
        sections[name] = {row.name: values[row.name] for row in rows if values[row.name] != row.default}
    return sections
