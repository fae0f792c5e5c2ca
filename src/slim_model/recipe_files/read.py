"""A recipe file, or the report of an earlier run -> the job it describes. Nothing here imports PyTorch."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slim_model.errors import InputError, first_line
from slim_model.options import About, options_of
from slim_model.recipe import Recipe, changed
from slim_model.recipe_files.job import SECTIONS, Job, job_of
from slim_model.recipe_files.versions import RECIPE_SCHEMA, recipe_of_report

_PATHS = {"source": "path", "outputs": "onnx"}
"""What a section has beside its options: IN and OUT.onnx."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def read_job(
    file: Path, changes: Mapping[str, Any] | None = None, *, source: Path | None = None, target: Path | None = None
) -> Job:
    """The job that ``file`` describes: a recipe (.toml, .yaml, .json), or the report (.json) of a run to repeat.

    ``changes`` are options by name that take the place of those in the file, as do ``source`` (IN) and ``target``
    (OUT.onnx); what a change excludes goes, as a ratio where a target is given. Paths in the file are relative to
    its folder; ``${NAME}`` in a text is that environment variable. Raises InputError where the file cannot be read, a
    section or key is unknown, a value is of another type, or two exclude each other.
    """
    sections = _parse(file)
    sha256 = None
    if str(sections.get("schema", "")).startswith("slim-model-report/"):
        sections, sha256 = recipe_of_report(sections, file)
    _check_names(sections, file)
    values = changed(dict(_values_of(sections, file)), changes or {})
    source = source or values.get("path")
    target = target or values.get("onnx")
    if source is None:
        raise InputError(f"{file}: [source] has no 'path', the model. Add it, or give --source IN.")
    if target is None:
        raise InputError(f"{file}: [outputs] has no 'onnx', the file to write. Add it, or give --onnx OUT.onnx.")
    try:
        return job_of(values, source, target, sha256=sha256)
    except InputError as error:  # options that are wrong, or contradict each other
        raise InputError(f"{file}: {error}") from error


def _parse(file: Path) -> dict[str, Any]:
    """The file as sections, whichever of the three notations its ending names."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text: slim-model run takes a recipe, or a report of an earlier run.") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}.") from error
    if (parse := _NOTATIONS.get(file.suffix.lower())) is None:
        raise InputError(f"{file}: the ending says how a recipe is written; it is one of {', '.join(_NOTATIONS)}.")
    try:
        sections = parse(text)
    except RecursionError as error:
        raise InputError(f"{file}: its values are nested too deep for a recipe.") from error
    except ValueError as error:  # of json and tomllib, with line and column
        raise InputError(f"{file} is no {file.suffix[1:].upper()}: {first_line(error)}.") from error
    if not isinstance(sections, dict):
        raise InputError(f'{file} holds no sections. A recipe begins so: [source], then path = "model.pt".')
    return sections


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise InputError("a recipe in YAML needs PyYAML: pip install pyyaml, or write it as TOML.") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


_NOTATIONS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _check_names(sections: Mapping[str, Any], file: Path) -> None:
    """Raise InputError where a section or one of its keys is none of ours, with the nearest that is."""
    if (schema := sections.get("schema", RECIPE_SCHEMA)) != RECIPE_SCHEMA:
        raise InputError(f"{file} is of schema {schema}; this version of slim-model reads {RECIPE_SCHEMA}.")
    homes = {key: section for section in SECTIONS for key in _keys_of(section)}
    for name, section in sections.items():
        if name in ("seed", "schema"):
            continue
        if name not in SECTIONS:
            hint = f"'{name}' belongs to [{homes[name]}]" if name in homes else _nearest(name, [*SECTIONS, "seed"])
            raise InputError(f"{file}: there is no section '{name}'. {hint}.")
        if not isinstance(section, dict):
            raise InputError(f"{file}: '{name}' is a section: write [{name}], and its options below.")
        for key in section:
            if key not in _keys_of(name):
                hint = f"It belongs to [{homes[key]}]" if key in homes else _nearest(key, _keys_of(name))
                raise InputError(f"{file}: [{name}] has no option '{key}'. {hint}.")


def _keys_of(section: str) -> list[str]:
    return [*filter(None, [_PATHS.get(section)]), *(field.name for field, _ in options_of(SECTIONS[section]))]


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(name.replace("-", "_"), names, n=1, cutoff=0.5)
    return f"The nearest is '{near[0]}'" if near else f"There are: {', '.join(names)}"


def _values_of(sections: Mapping[str, Any], file: Path) -> Iterator[tuple[str, Any]]:
    """Each option and its value, as the groups take them. null, where a notation has it, is the default."""
    (_, seed), *_ = options_of(Recipe)
    if sections.get("seed") is not None:
        yield "seed", _typed(sections["seed"], seed, "seed", file)
    for name, section in ((name, sections[name]) for name in SECTIONS if name in sections):
        rows = {field.name: about for field, about in options_of(SECTIONS[name])}
        for key, value in section.items():
            if value is not None:
                about = rows.get(key, About("", Path))
                yield key, _typed(value, about, f"[{name}] {key}", file)


def _typed(value: Any, about: About, what: str, file: Path) -> Any:
    """``value`` as the option takes it, or InputError."""
    if about.many:
        items = value if isinstance(value, list) else [value]
        return tuple(_text(item, what, file) for item in items)
    if about.read and isinstance(value, int | float | list) and not isinstance(value, bool):
        value = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if about.read:
        return about.read(f"{file}: {what}", _text(value, what, file))
    if about.kind in (str, Path):
        text = _text(value, what, file)
        if about.kind is Path:
            return file.parent / text
        return about.move(text, lambda path: str(file.parent / path)) if about.move else text
    fits = isinstance(value, int | float if about.kind is float else about.kind)
    if not fits or (isinstance(value, bool) and about.kind is not bool):
        raise InputError(f"{file}: {what} = {json.dumps(value, default=str)} is no {_NAMES[about.kind]}.")
    if about.least is not None and value < about.least:
        raise InputError(f"{file}: {what} = {value} is below {about.least}.")
    return about.kind(value)


_NAMES = {bool: "true or false", int: "whole number", float: "number"}


def _text(value: Any, what: str, file: Path) -> str:
    """``value``, a text, with the environment's variables in it."""
    if not isinstance(value, str):
        raise InputError(f"{file}: {what} = {json.dumps(value, default=str)} is no text. Put it in quotes.")
    for name in _VARIABLE.findall(value):
        if name not in os.environ:
            raise InputError(f"{file}: {what} asks for the environment variable {name}, which is not set. Set it.")
    return _VARIABLE.sub(lambda match: os.environ[match[1]], value)
