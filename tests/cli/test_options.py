"""Options: each stands once, as a field of its stage's group; the command line and Python derive from it."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import slim_model
from slim_model import InputError, Recipe, cli
from slim_model.budget.allocations import ALLOCATIONS
from slim_model.budget.options import ENGINES, SCOPES
from slim_model.cli.parameters import flag_of
from slim_model.coupling.options import ATTENTION
from slim_model.export.options import OutputOptions
from slim_model.loading.source import SourceOptions
from slim_model.options import options_of
from slim_model.quantizing.forms import FORMS
from slim_model.ranking.criteria import CRITERIA
from slim_model.recipe import GROUPS
from slim_model.recovery.options import LEVELS
from slim_model.training.options import OPTIMIZERS, PRECISIONS

ALL = [*GROUPS.values(), Recipe, SourceOptions, OutputOptions]
CHOICES = {
    "recover": LEVELS,
    "scope": SCOPES,
    "engine": ENGINES,
    "attention": ATTENTION,
    "optimizer": OPTIMIZERS,
    "precision": PRECISIONS,
    "criterion": CRITERIA,
    "allocate": ALLOCATIONS,
    "int8_form": FORMS,
}


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str) -> str:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.run([flag]) == 0
    return capsys.readouterr().out


def test_no_two_groups_have_an_option_of_one_name() -> None:
    names = [field.name for group in ALL for field in dataclasses.fields(group) if field.name not in GROUPS]
    assert len(names) == len(set(names))


def test_every_option_is_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = told(capsys, monkeypatch, "--help-all")
    flags = [flag_of(field, about) for group in ALL for field, about in options_of(group)]
    assert [flag for flag in flags if f"{flag} " not in text] == []


def test_help_shows_a_dozen_options_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = told(capsys, monkeypatch, "--help")
    shown = [flag_of(f, about) for group in ALL for f, about in options_of(group) if f"{flag_of(f, about)} " in text]
    assert len(shown) <= 15
    assert {"--ratio", "--data", "--target", "--keep", "--save"} <= set(shown)
    assert "--help-all" in text


@pytest.mark.parametrize("name", CHOICES)
def test_every_row_of_a_table_is_a_choice(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of recovery levels once stood in three places; ``blocks`` was missing in one."""
    text = told(capsys, monkeypatch, "--help-all")
    assert [row for row in CHOICES[name] if row not in text] == []
    for row in CHOICES[name]:
        data = "npz:x.npz" if name in ("recover", "criterion", "allocate") else None
        assert Recipe.of(**{name: row, "data": data}).options()[name] == row


def test_choices_are_neither_listed_again_nor_cast() -> None:
    source = Path(slim_model.__file__).parent
    files = [*source.glob("*.py"), *(source / "cli").glob("*.py"), *source.glob("*/options.py")]
    for path in files:
        called = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        typed = {ast.unparse(n.value) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Subscript)}
        assert "Literal" not in typed, path
        assert path.name == "__init__.py" or "cast" not in called, path


def test_a_recipe_takes_options_by_name_and_gives_them_back() -> None:
    recipe = Recipe.of(0.3, "fpgm", keep="stem", hints=3.0, data="npz:x.npz", threads=2, seed=4)
    assert (recipe.budget.ratio, recipe.ranking.criterion, recipe.coupling.keep) == (0.3, "fpgm", ("stem",))
    assert (recipe.training.hints, recipe.measuring.threads, recipe.seed) == (3.0, 2, 4)
    assert Recipe.of(**recipe.options()) == recipe
    assert recipe.but(ratio=0.6).budget.ratio == 0.6
    assert recipe.but(ratio=0.6).but(ratio=0.3) == recipe


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="no option 'raito'"):
        Recipe.of(raito=0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ratio", "2"], "ratio 2.0 is not between 0 and 1"),
        (["--ratio", "0.5", "--target", "macs=1G"], "ratio 0.5 and target 'macs=1G' both say how much goes"),
        (["--scope", "middle"], "scope 'middle' is unknown; it is one of local, global"),
        (["--multiple-of", "many"], "--multiple-of many: it is 'auto' or a whole number"),
        (["--mean", "red"], "--mean red: it is one number or one per channel"),
        (["--device", "tpu"], "device 'tpu' is unknown; it is one of cpu, cuda"),
        (["--min-speedup", "1.5", "--no-bench"], "--min-speedup needs the latency"),
        (["--finetune", "1"], "fine-tuning needs data"),
        (["--save", "small.h5"], "--save small.h5: the ending says what is written"),
    ],
)
def test_what_is_wrong_is_said_before_the_file_is_read(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.run(["not-there.pt", "out.onnx", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_min_speedup_is_the_commands() -> None:
    import torch

    with pytest.raises(InputError, match="min_speedup is measured by the command alone"):
        slim_model.slim(torch.nn.Linear(4, 4), torch.randn(2, 4), min_speedup=1.1)
