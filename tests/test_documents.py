"""The documents name what exists: links, files, options, and names in the code."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch
import torch_pruning

from slim_model.budget.allocations import ALLOCATIONS
from slim_model.cli import COMMANDS, command_named
from slim_model.cost.prices import PRICES
from slim_model.ops import OPS
from slim_model.ranking.criteria import CRITERIA
from slim_model.recovery.options import LEVELS
from source_names import SOURCE, files, resolves

PROJECT = Path(__file__).parents[1]
OTHERS = [PROJECT / "benchmarks/README.md", PROJECT / "examples/README.md"]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *OTHERS])
OURS = [path for path in DOCUMENTS if path.parent.name != "benchmarks"]
_OF_OTHERS = {"--nproc-per-node"}  # torchrun's


def _ids(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def _prose(document: Path) -> str:
    """The text without its blocks of code, which are run elsewhere."""
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.S)


def _spans(document: Path) -> list[str]:
    """What stands in ``code``."""
    return re.findall(r"`([^`\n]+)`", _prose(document))


def _anchors(document: Path) -> set[str]:
    """As the usual viewers make them of headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(document)):
        if re.match(r"https?:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in _anchors(target), f"{link}: no such heading in {target.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_files_exist(document: Path) -> None:
    """Those named with their folder; ``nets.py`` alone may be the user's."""
    data = ("../shared/", "mnist/", "fashion-mnist/", "text/", "cifar10/", "weights/")  # beside the repository
    elsewhere = ("path/", "build/", "slim-model-re", "slim-model-quantized/", *data)  # the last: schemas of files
    for span in _spans(document):
        if re.fullmatch(r"[\w.-]+(/[\w.*-]+)+/?", span) and not span.startswith(elsewhere):
            roots = (PROJECT, SOURCE, document.parent)
            assert any([*root.glob(span.rstrip("/"))] for root in roots), f"there is no {span}"


@pytest.mark.parametrize("document", OURS, ids=_ids)
def test_options_exist(document: Path) -> None:
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", "\n".join(_spans(document))):
        assert option in _options() | _OF_OTHERS, f"no command has {option}"


def _options_of(command: str) -> set[str]:
    parameters = command_named(command).params
    found = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    return {option for option in found if option.startswith("--")}


COMMAND_LINES = [
    (page, line)
    for page in OURS
    for block in re.findall(r"```text\n(.*?)```", page.read_text(), re.S)
    for line in re.findall(r"^slim-model (.+)$", block, re.M)
]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=lambda x: x.stem if isinstance(x, Path) else "")
def test_command_lines_are_understood(page: Path, line: str) -> None:
    """Those that are too long to run here: every option is there and takes the value that it is given."""
    words = shlex.split(line)
    name = words.pop(0) if words[0] in COMMANDS else "slim"
    command_named(name).make_context(f"slim-model {name}", words)


@cache
def _options() -> set[str]:
    found = {"--help"}.union(*map(_options_of, COMMANDS))
    scripts = [*PROJECT.glob("scripts/*"), *PROJECT.glob("scripts/*/*.py"), *PROJECT.glob("benchmarks/*.py")]
    for script in scripts:
        if script.is_file() and script.suffix in ("", ".py"):
            found |= set(re.findall(r"--[a-z][a-z0-9-]+", script.read_text()))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_names_exist(document: Path) -> None:
    """``Coupling.component``, ``prove()``, ``slim_model.restore``, ``OPS``."""
    for span in _spans(document):
        name = span.removesuffix("()").partition("(")[0]
        if name.startswith("slim_model."):
            assert resolves(name), f"there is no {name}"
        elif re.fullmatch(r"[A-Z][a-z]\w*(\.\w+)*", name):
            whole, _, part = name.partition(".")
            theirs = (
                torch.nn,
                torch.export,
                torch.utils.data,
                torch_pruning,
                torch_pruning.pruner,
                torch_pruning.importance,
            )
            known = whole in _defined() or any(hasattr(module, whole) for module in theirs)
            assert known, f"{whole} is no class of ours, of PyTorch or of Torch-Pruning"
            assert not part or part in _defined(), f"nothing is called {part}"
        elif span.endswith("()") and "." not in name:
            assert name in _defined(), f"no function is called {name}"


@cache
def _defined() -> set[str]:
    """Classes, functions, fields and constants of ours."""
    found: set[str] = set()
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                found |= {t.id for t in targets if isinstance(t, ast.Name)}
                found |= {t.attr for t in targets if isinstance(t, ast.Attribute)}
    return found


@pytest.mark.parametrize("command", ["slim", "compare", "explain", "bench", "profile", "quantize", "plan"])
def test_every_option_is_on_the_page_of_the_command_line(command: str) -> None:
    first, *sections = re.split(r"^## ", (PROJECT / "docs/cli.md").read_text(), flags=re.M)
    own = [s for s in sections if s.startswith(f"slim-model {command}\n")]
    general = [first, *(s for s in sections if not s.startswith("slim-model "))]
    of_all = [s for s in sections if s.startswith("What is printed\n")]
    text = "".join([*own, *of_all] if own else general)
    assert _options_of(command) <= set(re.findall(r"--[a-z][a-z0-9-]*", text))


def test_architecture_lists_the_packages_in_their_order() -> None:
    text = (PROJECT / "docs/architecture.md").read_text().partition("\n## Packages\n")[2].partition("\n## ")[0]
    order = re.search(r'ORDER = """(.*?)"""', (PROJECT / "tests/test_architecture.py").read_text(), re.S)
    assert order is not None
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == order[1].split()


def test_correctness_lists_the_statistics_over_channels() -> None:
    """They are no sums, and the proof runs them over the channels that are kept."""
    text = (PROJECT / "docs/correctness.md").read_text()
    table = text.partition("## Statistics over channels")[2].partition("\n## ")[0]
    listed = re.findall(r"`(\w+(?:\.\w+)?)`", "".join(re.findall(r"^\|([^|]+)\|", table, re.M)))
    rows = {str(target).removeprefix("aten.") for target, row in OPS.items() if row.masks == "kept"}
    assert sorted(listed) == sorted(rows)


@pytest.mark.parametrize(
    ("section", "table"),
    [("Criteria", CRITERIA), ("Prices", PRICES), ("Allocations", ALLOCATIONS), ("Recovery", LEVELS)],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_methods_has_a_row_for_each(section: str, table: dict[str, object]) -> None:
    text = (PROJECT / "docs/methods.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", text, re.M)) == sorted(table)


def test_every_result_and_benchmark_has_a_row() -> None:
    text = (PROJECT / "benchmarks/README.md").read_text()
    results = {path.stem for path in (PROJECT / "benchmarks/results").glob("*.json")}
    scripts = {path.name for path in (PROJECT / "benchmarks").glob("*.py")}
    assert not [name for name in results if f"(results/{name}." not in text]
    assert not [name for name in scripts if f"[{name}]({name})" not in text]


def test_the_readme_leads_to_every_page() -> None:
    text = (PROJECT / "README.md").read_text()
    pages = [path.relative_to(PROJECT) for path in DOCUMENTS if path.name != "README.md"]
    assert pages
    assert not [page for page in pages if f"({page})" not in text]
