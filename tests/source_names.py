"""What the source is made of: its files, its docstrings and the names in them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import slim_model

SOURCE = Path(slim_model.__file__).parent


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def docstrings() -> Iterator[tuple[Path, str]]:
    """With the strings behind constants and fields."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield path, node.value.value


@cache
def modules() -> dict[str, list[str]]:
    """The whole names of modules and packages, by their last part."""
    found: dict[str, list[str]] = {}
    for path in files():
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.setdefault(parts[-1], []).append(".".join(parts))
    return found


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@cache
def names_in(path: Path) -> set[str]:
    """Every name and word that the code of a file uses."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                found.add(name)
        if isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            found.add(node.value)
    return found
