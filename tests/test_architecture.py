"""What keeps the source readable: imports point one way, one row an operator, one place for each fact."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import slim_model
from slim_model.budget.allocations import ALLOCATIONS
from slim_model.budget.options import ENGINES
from slim_model.data.options import SOURCES
from slim_model.late import Late
from slim_model.measuring.options import RUNTIME_NAMES
from slim_model.measuring.runtimes import RUNTIMES
from slim_model.ops import OPS, row_of
from slim_model.ops.row import Curve, Effect, Kind, Op
from slim_model.ranking.criteria import CRITERIA
from source_names import SOURCE, docstrings, files, modules, names_in, resolves

PROJECT = Path(__file__).parents[1]

ORDER = """
    errors version late options named_options progress distributed atomic_write strict_json
    calling graph labels ops simplifying from_onnx loading coupling measuring cost cutting data ranking proof recovery
    factoring training export quantizing budget effort recipe recipe_files folders pipeline reporting api commands cli
    __main__
""".split()
"""A module or package may import what stands before it, and a package itself. Budget stands behind export and
measuring because it may write and measure small models: the order of imports is not that of the stages."""


def name_of(path: Path) -> str:
    """``ops/norm.py`` belongs to ``ops``; the package itself is ``__init__``."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file knows: imported at the top, in a function or for types, or named as ``Late``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write the whole name, slim_model.{node.module}"
            whole = [node.module or ""] if node.module != "slim_model" else [f"slim_model.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Late" and isinstance(node.args[0], ast.Constant):
            whole = [f"slim_model.{node.args[0].value.partition(':')[0]}"]
        else:
            continue
        for name in whole:
            package, _, module = name.partition(".")
            if package == "slim_model" and module not in ("", "__version__"):
                yield module


def module_of(path: Path) -> str:
    """``ops.norm`` for ``ops/norm.py``, ``ops`` for ``ops/__init__.py``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def test_every_module_has_its_place() -> None:
    modules = {name_of(path) for path in files()} - {"__init__"}
    assert modules == set(ORDER), "a module is added to ORDER, or taken from it, with the change that makes it"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    package = name_of(path)
    if package == "__init__":
        return
    for other in (module.partition(".")[0] for module in imports(path)):
        message = f"{package} imports {other}, which stands after it"
        assert other == package or ORDER.index(other) < ORDER.index(package), message


def test_no_two_modules_import_each_other() -> None:
    """Nor any more in a circle, inside a package either. A table may name its functions' module, and be read by it."""
    known = {module_of(path): path for path in files() if path != SOURCE / "__init__.py"}
    late = {module for module, path in known.items() if "Late(" in path.read_text()}
    graph = {
        module: {other if other in known else other.rpartition(".")[0] for other in imports(path)}
        & known.keys() - {module}
        for module, path in known.items()
        if module not in late
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_a_model_becomes_a_coupling_in_one_way() -> None:
    """Five copies of trace, simplify, couple had drifted apart: ``profile`` did not look for attention heads."""
    only = {"graph.trace": "proof.capture", "simplifying.simplify": "proof.capture"}
    for path in files():
        for other in imports(path):
            assert only.get(other, module_of(path)) == module_of(path), f"{path}: capture() does this"
    callers = {
        module_of(path)
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "couple"
    }
    assert {module for module in callers if not module.startswith("coupling.")} == set()


def test_no_folder_is_crowded() -> None:
    counted = Counter(path.parent for path in files())
    assert {str(folder.relative_to(SOURCE)): n for folder, n in counted.items() if n > 16} == {}


NO_MODEL = str(SOURCE / "api.py")
WITHOUT_PYTORCH = (
    *(["--help"], ["--help-all"], ["--version"], [], ["in.pt", "out.onnx", "--ratio", "2"]),
    *(["no-such.pt", "out.onnx"], [NO_MODEL, "out.onnx"], [NO_MODEL, "no-such/out.onnx"], ["explain", NO_MODEL]),
)


def test_help_and_what_is_plainly_wrong_are_read_without_pytorch() -> None:
    """``--help``, ``--version``, a usage error and a file that is none import none of what takes seconds."""
    code = "import sys; from slim_model import cli; cli.run(sys.argv[1:]); print(sorted(HEAVY & sys.modules.keys()))"
    heavy = "HEAVY = {'torch', 'torchvision', 'timm', 'torch_pruning', 'scipy', 'numpy', 'onnx', 'onnxruntime'}; "
    asked = "HEAVY |= {'pydantic'}; "  # of typer, for values; 70 ms
    for arguments in WITHOUT_PYTORCH:
        found = subprocess.run(
            [sys.executable, "-c", heavy + asked * (len(arguments) == 1) + code, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE.parent)},
            check=True,
        )
        assert found.stdout.splitlines()[-1] == "[]", arguments


def test_what_posix_alone_has_is_asked_for() -> None:
    """Windows imports every module: what only POSIX has is imported in a ``try``, or where the platform is known."""
    posix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for path in files():
        for node in ast.parse(path.read_text()).body:
            names = {a.name for a in node.names} if isinstance(node, ast.Import) else {getattr(node, "module", None)}
            assert not names & posix, f"{path}:{node.lineno}"


def test_every_late_function_is_there() -> None:
    tables = (CRITERIA, ALLOCATIONS, ENGINES, SOURCES)
    for row in (row for table in tables for row in table.values()):
        late = next(
            x for x in (row, getattr(row, "function", None), getattr(row, "method", None)) if isinstance(x, Late)
        )
        assert callable(late.load())


def test_runtimes_are_named_without_pytorch() -> None:
    assert tuple(RUNTIMES) == RUNTIME_NAMES


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
    assert row.kind in (None, *get_args(Kind))
    assert row.effect in (None, *get_args(Effect))
    assert row.curve in (None, *get_args(Curve))
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


LISTED = {
    "calling/draws.py": "the mean of what an operator draws, in a run of the user's own module, too, below the rows",
    "graph/trace.py": "what may be left out of a graph, before anything asks a row",
    "graph/decisions.py": "a graph runs by itself, without the rows, and gives what sorts and thresholds decided",
    "graph/other_inputs/looked_up.py": "what operators below the rows look up, in a run of a model before it is traced",
    "simplifying/constant_indices.py": "spellings of a look-up, most of which have no row: they are written as another",
    "export/lower.py": "what the ONNX exporter is given in place of single overloads",
    "export/onnx_translations.py": "what the ONNX exporter lacks",
}
"""Files outside ``ops`` that list operators, and why no row could say it."""


def operators_listed(path: Path) -> Iterator[int]:
    """Lines where a set, tuple, list or the keys of a dictionary name operators."""
    for node in ast.walk(ast.parse(path.read_text())):
        elements = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        named = [ast.unparse(element).strip("'\"") for element in elements if element is not None]
        if sum(bool(re.match(r"(torch\.ops\.)?aten\.\w", name)) for name in named) > 1:
            yield node.lineno  # type: ignore[attr-defined]


def test_what_is_known_of_operators_stands_in_their_rows() -> None:
    outside = {str(path.relative_to(SOURCE)): path for path in files() if name_of(path) != "ops"}
    found = {name: lines for name, path in outside.items() if (lines := list(operators_listed(path)))}
    assert found.keys() == LISTED.keys(), f"a list of operators is a column of ops.row.Op: {found}"


def test_lists_of_operators_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "listing.py"
    for text in ("{aten.add, aten.sub}", "f(torch.ops.aten.a, (1, *(aten.b, aten.c)))", "{'aten.a.x': 1, 'aten.b': 2}"):
        path.write_text(text)
        assert list(operators_listed(path)) == [1]
    for text in ("f(aten.a, aten.b)", "(aten.a, x)", "['aten']"):
        path.write_text(text)
        assert not list(operators_listed(path))


def test_every_criterion_says_what_it_needs() -> None:
    for name, row in CRITERIA.items():
        assert row.__name__ == name
        assert callable(row.function)
        assert isinstance(row.function, Late)
        assert (row.function.load().__doc__ or "").strip(), f"{name} says what it computes, with its paper"


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
