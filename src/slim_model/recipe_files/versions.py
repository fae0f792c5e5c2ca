"""The versions of what is written for machines, and how a report of an older one is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slim_model.errors import InputError
from slim_model.options import options_of
from slim_model.recipe_files.job import SECTIONS

RECIPE_SCHEMA = "slim-model-recipe/1"
REPORT_SCHEMA = "slim-model-report/2"
"""/1 had the options in one list, and not where IN and OUT.onnx lay."""


def check_report(report: Any, file: Path) -> int:
    """The version of ``report``, read from ``file``; InputError where it is no report, or one of a later slim-model."""
    if not isinstance(report, dict) or not str(report.get("schema", "")).startswith("slim-model-report/"):
        raise InputError(f"{file} is no report of slim-model. Give a file that --report wrote.")
    version = str(report["schema"]).rpartition("/")[2]
    if not version.isdecimal() or int(version) > int(REPORT_SCHEMA.rpartition("/")[2]):
        raise InputError(
            f"{file} is of schema {report['schema']}; this version reads up to {REPORT_SCHEMA}. Update slim-model."
        )
    if not isinstance(report.get("recipe"), dict) or not isinstance(report.get("source"), dict):
        raise InputError(f"{file} is no whole report: it holds no recipe or no source.")
    return int(version)


def recipe_of_report(report: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], str | None]:
    """The sections of the recipe that ``report`` holds, and the sha256 of its IN."""
    recipe = dict(report["recipe"]) if check_report(report, file) > 1 else _sections(report["recipe"])
    budget = recipe.get("budget")
    # A target once stood beside a ratio that meant nothing.
    if isinstance(budget, dict) and budget.get("target") is not None:
        recipe["budget"] = {**budget, "ratio": None}
    return recipe, report["source"].get("sha256")


def _sections(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Options in one list, as version 1 had them, by section. ``block`` is what widths were rounded to."""
    values = {**flat, "multiple_of": flat.get("block", flat.get("multiple_of"))}
    sections: dict[str, Any] = {"seed": flat.get("seed", 0)}
    for name, group in SECTIONS.items():
        sections[name] = {f.name: values[f.name] for f, _ in options_of(group) if values.get(f.name) is not None}
    return sections
