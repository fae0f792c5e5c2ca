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
_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)\}?")


def read_job(
    file: Path, changes: Mapping[str, Any] | None = None, *, source: Path | None = None, target: Path | None = None
) -> Job:
    """The job that ``file`` describes: a recipe (.toml, .yaml, .json), or the report (.json) of a run to repeat.

    ``changes`` are options by name that take the place of those in the file, as do ``source`` (IN) and ``target``
    (OUT.onnx); what a change excludes goes, as a ratio where a target is given. Paths in the file are relative to
    its folder; ``${NAME}`` in a text is that environment variable, ``$${`` is ``${`` itself. Raises InputError where
    the file cannot be read, a section or key is unknown or stands there twice, a value is of another type, or two
    exclude each other.
    """
    sections = _parse(file)
    sha256 = None
    if isinstance(schema := sections.get("schema"), str) and schema.startswith("slim-model-report/"):
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
        text = file.read_text(encoding="utf-8-sig")  # some editors put a mark ahead of it
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is no text in UTF-8: slim-model run takes a recipe, or a report of an earlier run."
        ) from error
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


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The table of ``pairs``; ValueError where a key stands there twice, of which JSON and YAML would take the last."""
    keys = [key for key, _ in pairs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"'{twice}' stands there twice")
    return dict(pairs)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise InputError("a recipe in YAML needs PyYAML: pip install pyyaml, or write it as TOML.") from error

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _once([(key.value, None) for key, _ in node.value if key.id == "scalar" and key.value != "<<"])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


_NOTATIONS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _check_names(sections: Mapping[str, Any], file: Path) -> None:
    """Raise InputError where a section or one of its keys is none of ours, with the nearest that is."""
    if (schema := sections.get("schema", RECIPE_SCHEMA)) != RECIPE_SCHEMA:
        raise InputError(f"{file} is of schema {_shown(schema)}; this version of slim-model reads {RECIPE_SCHEMA}.")
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


def _nearest(name: Any, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(str(name).replace("-", "_"), names, n=1, cutoff=0.5)
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
    numbers = value if isinstance(value, list) else [value]
    if about.read and all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in numbers):
        value = ",".join(map(str, numbers))
    if about.read:
        return about.read(f"{file}: {what}", _text(value, what, file))
    if about.kind in (str, Path):
        text = _text(value, what, file)
        if about.kind is Path:
            return file.parent / text
        return about.move(text, lambda path: str(file.parent / path)) if about.move else text
    fits = isinstance(value, int | float if about.kind is float else about.kind)
    if not fits or (isinstance(value, bool) and about.kind is not bool):
        raise InputError(f"{file}: {what} = {_shown(value)} is no {_NAMES[about.kind]}.")
    if about.least is not None and value < about.least:
        raise InputError(f"{file}: {what} = {value} is below {about.least}.")
    if about.most is not None and value > about.most:
        raise InputError(f"{file}: {what} = {value} is above {about.most}.")
    try:
        return about.kind(value)
    except OverflowError:
        raise InputError(f"{file}: {what} is too large for a number of floating point.") from None


_NAMES = {bool: "true or false", int: "whole number", float: "number"}


def _text(value: Any, what: str, file: Path) -> str:
    """``value``, a text, with the environment's variables in it."""
    if not isinstance(value, str):
        raise InputError(f"{file}: {what} = {_shown(value)} is no text. Put it in quotes.")

    def variable(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if match[0] != f"${{{match[1]}}}" or not re.fullmatch(r"\w+", match[1]):
            hint = "Write ${NAME}, or $${ for the characters themselves."
            raise InputError(f"{file}: {what}: '{match[0]}' names no environment variable. {hint}")
        if match[1] not in os.environ:
            raise InputError(f"{file}: {what} asks for the environment variable {match[1]}, which is not set. Set it.")
        return os.environ[match[1]]

    return _VARIABLE.sub(variable, value)


def _shown(value: Any) -> str:
    """``value`` as JSON has it; of a list or a table the brackets, since in YAML a short one may hold billions."""
    if isinstance(value, str | int | float | None):
        return json.dumps(value)
    return "{...}" if isinstance(value, dict) else "[...]" if isinstance(value, list) else f'"{value}"'
