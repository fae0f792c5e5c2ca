"""A job -> the sections of a recipe file, with every value as the run used it, and their text in TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slim_model.options import options_of
from slim_model.recipe import GROUPS, Recipe
from slim_model.recipe_files.job import SECTIONS, Job
from slim_model.recipe_files.versions import RECIPE_SCHEMA


def sections_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """``{"seed": 0, "budget": {"ratio": 0.5, ...}, ...}``, in values that JSON has. What was given in Python is told
    by its name; a run that is read back refuses it."""
    values = {name: getattr(recipe, name) for name in GROUPS}
    return {"seed": recipe.seed} | {name: _options(group, Path()) for name, group in values.items()}


def sections_of(job: Job, folder: Path) -> dict[str, Any]:
    """As ``sections_of_recipe``, with ``source`` and ``outputs``. Paths below ``folder``, where the file will lie, are
    relative to it; others are whole. Of the address of MLflow the name and password are left out."""
    groups = {name: getattr(job.recipe, name) for name in GROUPS}
    groups = {"source": job.source.options, **groups, "outputs": job.outputs}
    sections = {name: _options(groups[name], folder) for name in SECTIONS}
    sections["source"] = {"path": _place(job.source.path, folder)} | sections["source"]
    sections["outputs"] = {"onnx": _place(job.target, folder)} | sections["outputs"]
    sections["outputs"]["mlflow"] = without_login(sections["outputs"]["mlflow"])
    return {"seed": job.recipe.seed} | sections


def without_login(address: str | None) -> str | None:
    """``address`` as others may read it.

    >>> without_login("https://ci:secret@host:5000/a"), without_login("sqlite:////tmp/ml.db")
    ('https://host:5000/a', 'sqlite:////tmp/ml.db')
    """
    return address and re.sub(r"(?<=://)[^/]*@", "", address)


def toml_of(sections: Mapping[str, Any]) -> str:
    """The text of a recipe file; options without a value are left out."""
    lines = [f"schema = {_toml(RECIPE_SCHEMA)}", f"seed = {sections['seed']}"]
    for name in SECTIONS:
        values = {key: value for key, value in sections[name].items() if value not in (None, [])}
        if values:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _options(group: Any, folder: Path) -> dict[str, Any]:
    return {field.name: _value(getattr(group, field.name), about, folder) for field, about in options_of(type(group))}


def _value(value: Any, about: Any, folder: Path) -> Any:
    """An option's value as JSON has it."""
    if isinstance(value, Path):
        return _place(value, folder)
    if isinstance(value, tuple) and all(isinstance(item, str | int | float) for item in value):
        return [_literal(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _literal(about.move(value, lambda path: _whole(Path(path), folder)) if about.move else value)
    named = getattr(value, "__name__", None) if callable(value) else None
    return named or f"given in Python ({type(value).__name__})"


def _literal(value: Any) -> Any:
    """``value`` so that reading it looks for no environment variable."""
    return value.replace("${", "$${") if isinstance(value, str) else value


def _place(path: Path, folder: Path) -> str:
    """``path`` as a file in ``folder`` names it."""
    return str(_literal(_whole(path, folder)))


def _whole(path: Path, folder: Path) -> str:
    whole, base = path.absolute(), folder.absolute()
    return str(whole.relative_to(base) if whole.is_relative_to(base) else whole)


def _toml(value: Any) -> str:
    """TOML writes texts, numbers, truth values and lists as JSON does, but for the characters JSON escapes in pairs."""
    return json.dumps(value, ensure_ascii=False)
