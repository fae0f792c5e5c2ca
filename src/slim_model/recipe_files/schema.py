"""The JSON Schema of recipe files, from the option groups."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from slim_model.options import About, options_of
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import SECTIONS
from slim_model.recipe_files.versions import RECIPE_SCHEMA

_TYPES = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean"}


def recipe_schema() -> dict[str, Any]:
    """What an editor or a pipeline checks a recipe with: JSON Schema, draft 2020-12."""
    sections = {name: _section(name, group) for name, group in SECTIONS.items()}
    (field, about), *_ = options_of(Recipe)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": RECIPE_SCHEMA,
        "type": "object",
        "properties": {"schema": {"const": RECIPE_SCHEMA}, "seed": _option(field, about), **sections},
        "additionalProperties": False,
    }


def _section(name: str, group: type) -> dict[str, Any]:
    options = {field.name: _option(field, about) for field, about in options_of(group)}
    files = {"source": {"path": "IN, the model."}, "outputs": {"onnx": "OUT.onnx, the file to write."}}
    own = {key: {"type": "string", "description": text} for key, text in files.get(name, {}).items()}
    return {"type": "object", "properties": own | options, "additionalProperties": False}


def _option(field: dataclasses.Field[Any], about: About) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": _TYPES[about.kind]}
    if about.choices:
        kind["enum"] = list(about.choices)
    if about.least is not None:
        kind["minimum"] = about.least
    if about.most is not None:
        kind["maximum"] = about.most
    if about.many:
        kind = {"anyOf": [kind, {"type": "array", "items": kind}]}
    elif about.read:  # texts of a form of their own: a number, or several
        kind = {"type": ["string", "number", "array"], "items": {"type": "number"}}
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return kind | {"description": about.help} | ({} if default is None else {"default": default})
