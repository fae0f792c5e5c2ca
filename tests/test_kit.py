"""What is handed to CI systems: the action's steps run, the image and the snippets are what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from slim_model.cli import COMMANDS, command_named
from slim_model.recipe_files.read import read_job
from small_nets import Residual, trained

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "docs/pipelines.md").read_text()
GITHUB, GITLAB = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
ACTION = yaml.safe_load((PROJECT / "action.yml").read_text())
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"]["slim"]
RECIPE = '[source]\npath = "in.pt"\narch = "small_nets:Residual"\ninputs = "1x3x16x16"\n[outputs]\nonnx = "out.onnx"\n'


def step(name: str, tmp_path: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as GitHub does: its expressions filled in, in the shell that it names."""
    (found,) = (step for step in ACTION["runs"]["steps"] if step["name"] == name)
    assert found["shell"] == "bash"
    assert "${{" not in found["run"], "what a user types goes through the environment, or it is run as code"
    values = {"github.action_path": str(PROJECT)} | {f"inputs.{key}": value for key, value in inputs.items()}
    filled = {key: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values[m[1]], text) for key, text in found["env"].items()}
    environment = os.environ | filled | {"RUNNER_TEMP": str(tmp_path), "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(str(PROJECT / part) for part in ("src", "tests"))
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", found["run"]]
    return subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_the_action_installs_slim_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the download: pip reads the project and the constraints, and would install the package alone."""
    for name in ("DRY_RUN", "NO_DEPS", "NO_INDEX", "IGNORE_INSTALLED"):
        monkeypatch.setenv(f"PIP_{name}", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads it the other way round
    ran = step("Install", tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_the_action_puts_the_figures_on_the_page(tmp_path: Path) -> None:
    torch.save(trained(Residual()).state_dict(), tmp_path / "in.pt")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "page.md").write_text("of a step before\n")
    ran = step("Slim", tmp_path, recipe="recipe.toml", options="--no-bench --multiple-of 1 --ratio 0.3")
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("of a step before\n### in.pt: slim and proven")
    assert "| multiply-adds |" in page
    assert (tmp_path / "out.onnx").exists()


def test_the_action_says_why_it_failed(tmp_path: Path) -> None:
    ran = step("Slim", tmp_path, recipe="none.toml", options="")
    assert ran.returncode == 2
    page = (tmp_path / "page.md").read_text()
    assert "none.toml: exit code 2" in page
    assert "error: cannot read none.toml" in page


def test_the_snippets_use_what_there_is() -> None:
    (uses,) = (step for step in GITHUB["jobs"]["slim"]["steps"] if step["uses"].startswith("./"))
    assert uses["with"].keys() <= ACTION["inputs"].keys()
    assert {name for name, about in ACTION["inputs"].items() if about.get("required")} <= uses["with"].keys()
    options = {name for parameter in command_named("run").params for name in parameter.opts}
    (line,) = GITLAB["slim"]["script"]
    program, run, recipe, *rest = shlex.split(line)
    assert (program, run, recipe) == ("slim-model", "run", "recipe.toml")
    assert [word for word in rest if word.startswith("-") and word not in options] == []
    made = set(re.findall(r'= "([\w.]+\.(?:onnx|html))"', PAGE)) | set(rest)
    assert set(GITLAB["slim"]["artifacts"]["paths"]) <= made


def commands_of_the_kit() -> Iterator[str]:
    """Each call of slim-model, as the action, the snippet, the page and compose make it."""
    for text in [step["run"] for step in ACTION["runs"]["steps"]] + GITLAB["slim"]["script"]:
        yield from re.findall(r"\bslim-model [a-z].*", text)
    blocks = "\n".join(re.findall(r"```text\n(.*?)```", PAGE, re.S))
    yield from (f"slim-model {words}" for words in re.findall(r"\bslim-model (run.*)", blocks))
    yield shlex.join(["slim-model", *COMPOSE["command"]])
    yield shlex.join(["slim-model", *json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.M)[1])])  # type: ignore[index]


def test_the_kit_says_what_the_command_line_takes() -> None:
    lines = list(commands_of_the_kit())
    assert {line.split()[1] for line in lines} == {"run", "--help"}
    for line in lines:
        _, name, *rest = shlex.split(re.sub(r"\|\|.*", "", line))
        known = {
            flag for parameter in command_named(name if name in COMMANDS else "slim").params for flag in parameter.opts
        }
        asked = [word for word in (rest if name in COMMANDS else [name]) if word.startswith("--")]
        assert [word for word in asked if word not in known | {"--help"}] == [], line
    pip = next(step["run"] for step in ACTION["runs"]["steps"] if step["name"] == "Install")
    assert '--constraint "$ACTION/constraints.txt" "$ACTION"' in pip


def test_the_image_runs_the_recipe_that_compose_names() -> None:
    """It has what slim-model depends on and no more: the example's network once needed scikit-learn there."""
    recipe = re.search(r":-(.+?)}", COMPOSE["command"][1])
    assert recipe is not None
    arch = read_job(PROJECT / recipe[1]).source.options.arch
    assert arch is not None
    about = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    there, tests = (
        {canonicalize_name(Requirement(text).name) for text in texts}
        for texts in (about["dependencies"], about["optional-dependencies"]["dev"])
    )
    found = packages_distributions()
    absent = [top for top, names in found.items() if {canonicalize_name(name) for name in names} <= tests - there]
    assert "sklearn" in absent
    file, _, name = arch.partition(":")
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({absent!r})); runpy.run_path({file!r})[{name!r}]()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_image_is_pinned_and_has_a_user_without_rights() -> None:
    lines = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    words = [line.split(maxsplit=1) for line in lines]
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-\w+", dict(words)["ARG"])
    assert {rest for word, rest in words if word == "FROM"} == {"python:${PYTHON} AS build", "python:${PYTHON}"}
    assert dict(words)["USER"].isdigit()
    assert dict(words)["USER"] != "0"
    install = next(rest for word, rest in words if "pip install" in rest)
    assert "--constraint constraints.txt" in install
    ignored = (PROJECT / ".dockerignore").read_text().split()
    for sources in (rest.split()[:-1] for word, rest in words if word == "COPY" and "--from" not in rest):
        assert all((PROJECT / source).exists() and f"!{source}" in ignored for source in sources)
    entry = re.search(r'ENTRYPOINT \["(.+?)"\]', DOCKERFILE)
    assert entry is not None
    assert f"{entry[1]} = " in (PROJECT / "pyproject.toml").read_text()


def test_compose_gives_it_no_more_than_it_needs() -> None:
    assert COMPOSE["command"][0] == "run"
    assert (COMPOSE["network_mode"], COMPOSE["read_only"], COMPOSE["cap_drop"]) == ("none", True, ["ALL"])
    assert COMPOSE["volumes"] == [f".:{re.search(r'^WORKDIR (/models)$', DOCKERFILE, re.M)[1]}"]  # type: ignore[index]
