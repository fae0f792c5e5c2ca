"""A report -> one HTML file, with its pictures inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from slim_model.recipe_files.write import toml_of
from slim_model.reporting.headline import figures_of
from slim_model.reporting.pareto import trade_offs

_TEMPLATES = Environment(
    loader=PackageLoader("slim_model.reporting", "html"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def html_page(report: Mapping[str, Any], *, coupling_svg: str = "") -> str:
    """The page of ``report``, as ``Report.as_dict`` has it. ``coupling_svg``: a picture of which layers share channels,
    which the report itself does not hold."""
    return _TEMPLATES.get_template("page.html.j2").render(
        report=report,
        figures=list(figures_of(report)),
        steps=list(_steps(report)),
        curves=list(_curves(report)),
        operators=list(_operators(report)),
        recipe=toml_of(report["recipe"]) if "outputs" in report["recipe"] else "",
        coupling_svg=coupling_svg,
    )


def comparison_page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page that puts ``reports``, by the names of their files, side by side."""
    rows = {name: {figure.name: figure for figure in figures_of(report)} for name, report in reports.items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return _TEMPLATES.get_template("compare.html.j2").render(
        reports=reports, rows=rows, names=names, pictures=list(trade_offs(reports))
    )


def _steps(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each step with what is known of the model after it, as shares."""
    for step in report["steps"]:
        did = step["did"]
        yield {
            "name": step["name"],
            "seconds": step["seconds"],
            "accuracy": step["accuracy"],
            "error": did.get("error_after"),
            "agreement": did.get("agreement_after"),
            "taken_back": bool(did.get("taken_back")),
            "latency_ms": step.get("latency_ms"),
        }


def _curves(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each sensitivity curve as the points of a line in a box of 100 x 100, the highest loss at the top."""
    rows: Sequence[Mapping[str, Any]] = report.get("sensitivity", [])
    most = max((lost for row in rows for lost in row["lost"] if lost is not None), default=0.0) or 1.0
    for row in rows:
        points = zip(row["removed"], row["lost"], strict=True)
        line = " ".join(f"{100 * x:.1f},{100 - 100 * y / most:.1f}" for x, y in points if y is not None)
        yield {"name": row["name"], "line": line, "measure": row["measure"], "most": most}


def _operators(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each kind of operator, longest in the dense model first, with its time there and in the slim one."""
    rows = report.get("operators", [])
    for name in sorted({row["name"] for row in rows}, key=lambda name: -_taken(rows, "dense", name)):
        yield {"name": name, "dense": _taken(rows, "dense", name), "slim": _taken(rows, "slim", name)}


def _taken(rows: Sequence[Mapping[str, Any]], model: str, name: str) -> float:
    return float(sum(row["ms"] for row in rows if (row["model"], row["name"]) == (model, name)))
