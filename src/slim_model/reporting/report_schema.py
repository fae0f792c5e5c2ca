"""The JSON Schema of reports, from the types of their rows."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any

from slim_model.recipe_files.versions import REPORT_SCHEMA
from slim_model.reporting.report import Report


def report_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of what ``--report`` writes. A later slim-model may add keys under the same version;
    it takes none away and changes none."""
    return with_version(Report, REPORT_SCHEMA)


def with_version(kind: type, version: str) -> dict[str, Any]:
    """The schema of a file that holds the fields of the dataclass ``kind`` behind ``schema``, its version."""
    schema = schema_of(kind)
    schema["properties"] = {"schema": {"const": version}} | schema["properties"]
    schema["required"] = ["schema", *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": version} | schema


def schema_of(kind: Any) -> dict[str, Any]:
    """What a value of the type ``kind`` is in JSON. A dictionary, or each of a list, that was a dataclass before is
    annotated with it.

    >>> schema_of(list[int])
    {'type': 'array', 'items': {'type': 'integer'}}
    """
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        names = [field.name for field in dataclasses.fields(kind)]
        return {"type": "object", "properties": {n: schema_of(hints[n]) for n in names}, "required": names}
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        properties = {name: schema_of(hint) for name, hint in hints.items()}
        return {"type": "object", "properties": properties, "required": sorted(kind.__required_keys__)}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    # A report holds rows as dictionaries; the note beside the type says which dataclass they were.
    if origin is Annotated:
        row = schema_of(inner[1])
        return row if typing.get_origin(inner[0]) is dict else {"type": "array", "items": row}
    if origin in (list, tuple):
        rows = [schema_of(one) for one in inner if one is not Ellipsis]
        return {"type": "array", "items": rows[0] if all(row == rows[0] for row in rows) else {"anyOf": rows}}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(inner[1])}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(one) for one in inner]}
    raise TypeError(f"{kind} has no form in JSON")


_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # what is not finite is null
    type(None): {"type": "null"},
    Any: {},
}
