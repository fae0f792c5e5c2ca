"""Lays the documents out for mkdocs: as in the repository, with the pages of reference that follow from the tables.

``python scripts/site.py FOLDER``
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import slim_model
from slim_model.cli import COMMANDS, command_named

PROJECT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "docs/tutorials", "benchmarks", "benchmarks/results", "examples")
"""Where documents lie."""


def lay_out(target: Path) -> None:
    """Write all pages, and the files that they link to, into ``target``, which is made anew."""
    shutil.rmtree(target, ignore_errors=True)
    pages = [page for folder in FOLDERS for page in sorted((PROJECT / folder).glob("*.md"))]
    for file in {*pages, *(linked for page in pages for linked in _linked(page))}:
        place = target / file.relative_to(PROJECT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    reference = target / "docs/reference"
    reference.mkdir()
    (reference / "options.md").write_text("\n".join(_options_page()) + "\n", encoding="utf-8")
    (reference / "functions.md").write_text("\n".join(_functions_page()) + "\n", encoding="utf-8")


def _linked(page: Path) -> Iterator[Path]:
    """The files of the repository that ``page`` links to."""
    for link in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if (file := (page.parent / link).resolve()).is_file():
            yield file


def _options_page() -> Iterator[str]:
    """Every command with all its options, from the tables that the command line is made of."""
    yield "# All options"
    for name in COMMANDS:
        command = command_named(name)
        words = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        yield f"\n## {'slim-model' if name == 'slim' else f'slim-model {name}'}\n"
        yield f"`{' '.join(['slim-model', *([name] if name != 'slim' else []), *words])}`\n"
        yield inspect.cleandoc(command.help or "")
        yield "\n| option | default | meaning |\n|---|---|---|"
        for parameter in command.params:
            if parameter.param_type_name == "option":
                yield _option_row(parameter)


_KINDS = {int: "N", float: "X"}


def _option_row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    value = (
        "" if parameter.is_flag else f" {parameter.metavar or _KINDS.get(parameter.type_descriptor.annotation, 'TEXT')}"
    )
    default = parameter.default
    shown = "" if default in (None, False, True, "", (), []) or callable(default) else f"`{default}`"
    cells = (f"{names}{value}", shown, parameter.help or "")
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _functions_page() -> Iterator[str]:
    """What ``import slim_model`` gives, from the docstrings."""
    yield "# Functions and classes\n"
    values = {name: getattr(slim_model, name) for name in slim_model.__all__ if callable(getattr(slim_model, name))}
    for name in sorted(values, key=lambda name: isinstance(values[name], type)):  # functions, then classes
        value = values[name]
        yield f"## {name}\n"
        if inspect.isfunction(value):
            yield f"```py\n{name}{inspect.signature(value)}\n```\n".replace("'", "")
        yield inspect.getdoc(value) or ""
        yield ""


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
