"""What keeps the source readable: imports point one way, one row an operator, one place for each fact."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import slim_model
from slim_model.ops import OPS, row_of
from slim_model.ops.row import Op
from slim_model.ranking.criteria import CRITERIA
from source_names import SOURCE, docstrings, files, modules, names_in, resolves

PROJECT = Path(__file__).parents[1]

ORDER = """
    errors version progress named_options distributed atomic_write
    graph labels ops simplifying loading coupling measuring cost cutting data ranking proof recovery training export
    budget recipe pipeline reporting api commands cli __main__
""".split()
"""A module or package may import what stands before it, and a package itself. Budget stands behind export and
measuring because it may write and measure small models: the order of imports is not that of the stages."""


def name_of(path: Path) -> str:
    """``ops/norm.py`` belongs to ``ops``; the package itself is ``__init__``."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, at the top or inside a function, but not for annotations only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write the whole name, slim_model.{node.module}"
            whole = [node.module or ""] if node.module != "slim_model" else [f"slim_model.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        else:
            continue
        for name in whole:
            package, _, module = name.partition(".")
            if package == "slim_model" and module != "__version__":
                yield module.partition(".")[0]


def test_every_module_has_its_place() -> None:
    modules = {name_of(path) for path in files()} - {"__init__"}
    assert modules == set(ORDER), "a module is added to ORDER, or taken from it, with the change that makes it"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    module = name_of(path)
    if module == "__init__":
        return
    for other in imports(path):
        assert other == module or ORDER.index(other) < ORDER.index(module), (
            f"{module} imports {other}, which stands after it"
        )


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_names_of_files_say_something() -> None:
    empty_words = {"utils", "util", "helpers", "base", "core", "manager", "engine", "misc", "common"}
    assert not {path.stem for path in files()} & empty_words


@pytest.mark.parametrize("target", OPS, ids=str)
def test_every_operator_has_one_row(target: object) -> None:
    row = OPS[target]
    assert isinstance(row, Op)
    assert callable(row.flow)
    assert row.macs is None or callable(row.macs)
    assert row.rewrite is None or callable(row.rewrite)
    assert row.masks in ("nothing", "inputs", "kept")
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        assert target.__name__
    overloads = (
        [getattr(target, name) for name in target.overloads()]
        if isinstance(target, torch._ops.OpOverloadPacket)
        else [target]
    )
    assert all(row_of(overload) is not None for overload in overloads)


def test_only_atens_operators_in_place_have_the_rows_of_those_out_of_place() -> None:
    library = torch.library.Library("architecture", "DEF")
    library.define("relu_(Tensor(a!) x) -> Tensor(a!)")
    assert row_of(torch.ops.aten.relu_.default) is row_of(torch.ops.aten.relu.default)
    assert row_of(torch.ops.architecture.relu_.default) is None


def test_every_criterion_says_what_it_needs() -> None:
    for name, row in CRITERIA.items():
        assert row.__name__ == name
        assert callable(row.function)
        assert (row.function.__doc__ or "").strip(), f"{name} says what it computes, with its paper"


# -- facts that stand in one place ----------------------------------------------------------------------------------


def test_the_version_is_stated_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", slim_model.__version__)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/slim_model/version.py"
    stated = [path.name for path in files() if f'"{slim_model.__version__}"' in path.read_text()]
    assert stated == ["version.py"]


def test_the_constraints_meet_the_requirements() -> None:
    """scripts/demo and scripts/test install exactly these versions."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(name == canonicalize_name(name) for name in pinned)
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


def test_types_are_shipped() -> None:
    """Type checkers look for this file."""
    assert (SOURCE / "py.typed").exists()


def test_scripts_can_be_run() -> None:
    for name in ("scripts/demo", "scripts/test", ".ci/run"):
        path = PROJECT / name
        assert path.stat().st_mode & 0o111, f"{name} is not executable"
        assert path.read_text().startswith("#!/usr/bin/env bash\n")


# -- docstrings -----------------------------------------------------------------------------------------------------


def test_docstrings_name_modules_that_exist() -> None:
    """``slim_model.ops.row``, ``ops.row``, ``row.Op``; where the code has a ``recipe``, ``recipe.ratio`` is its own."""
    lost = []
    for path, text in docstrings():
        for name in re.findall(r"``([a-z_]+(?:\.\w+)+)", text):
            first, _, rest = name.partition(".")
            wholes = ["slim_model"] if first == "slim_model" else modules().get(first, [])
            if not wholes or rest == "py" or first in names_in(path):
                continue
            if not any(resolves(f"{whole}.{rest}") for whole in wholes):
                lost.append(f"{path.relative_to(SOURCE)}: {name}")
    assert not lost


def test_docstrings_say_where_a_name_is() -> None:
    """``(see ``heads``)`` in a file without any ``heads`` was a module of that name."""
    lost = []
    for path, text in docstrings():
        for name in re.findall(r"\((?:see )?``([a-z_]+)``\)", text):
            if name not in names_in(path):
                lost.append(f"{path.relative_to(SOURCE)}: {name}")
    assert not lost
