"""The documents as a site: every link leads somewhere, and the pages of reference have every option."""

from __future__ import annotations

import html
import re
import runpy
from pathlib import Path

import pytest

import slim_model
from slim_model.cli import COMMANDS, command_named

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``scripts/site`` builds it, where a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs-material is not installed")
        from mkdocs.config import load_config

        runpy.run_path(str(PROJECT / "scripts/site.py"))["lay_out"](folder / "pages")
        places = {"docs_dir": str(folder / "pages"), "site_dir": str(folder / "html")}
        build.build(load_config(str(PROJECT / "mkdocs.yml"), strict=True, **places))
    return folder / "html"


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page.read_text()))


def test_the_reference_has_every_option_and_function(site: Path) -> None:
    options = text_of(site / "docs/reference/options.html")
    for name in COMMANDS:
        for parameter in command_named(name).params:
            assert parameter.opts[0] in options or parameter.metavar in options, (name, parameter.name)
    functions = text_of(site / "docs/reference/functions.html")
    assert [name for name in slim_model.__all__ if name[0].isalpha() and name not in functions] == ["CRITERIA"]


def test_every_document_is_a_page_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    documents = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("benchmarks/**/*.md")]
    for document in documents:
        name = document.relative_to(PROJECT).with_suffix(".html")
        page = site / (name.with_name("index.html") if document.stem == "README" else name)
        fetched = re.findall(
            r'<(?:script|link rel="stylesheet"|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert fetched == []
