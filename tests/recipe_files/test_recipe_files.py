"""Recipe files: what is written is read again, repeats the run, and a mistake is named where it stands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from slim_model.cli import run as command
from slim_model.errors import InputError
from slim_model.export.options import OutputOptions
from slim_model.loading.source import Source, SourceOptions
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import SECTIONS, Job, job_of
from slim_model.recipe_files.read import read_job
from slim_model.recipe_files.schema import recipe_schema
from slim_model.recipe_files.versions import RECIPE_SCHEMA, REPORT_SCHEMA
from slim_model.recipe_files.write import sections_of, toml_of
from slim_model.reporting.quantized_report import QUANTIZED_SCHEMA
from small_nets import Residual, trained

WHOLE = """
seed = 3
[source]
path = "in.pt"
arch = "nets.py:build(2)"
inputs = ["1x3x8x8", "1x4:int64"]
[budget]
ratio = 0.25
multiple_of = 4
[data]
data = "npz:${FOLDER}/samples.npz"
mean = [0.5, 0.25, 1]
std = 2
[coupling]
keep = "head.*"
[gates]
max_drop = 0
[outputs]
onnx = "out/small.onnx"
save = "small.pt2"
"""


def written(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_recipe_is_the_job_that_its_options_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "calibration")
    job = read_job(written(tmp_path, WHOLE), {"ratio": 0.75}, target=Path("other.onnx"))
    options = SourceOptions(arch=f"{tmp_path}/nets.py:build(2)", inputs=("1x3x8x8", "1x4:int64"))
    assert job == Job(
        Source(tmp_path / "in.pt", options),
        Path("other.onnx"),
        Recipe.of(
            seed=3,
            ratio=0.75,
            multiple_of=4,
            data=f"npz:{tmp_path}/calibration/samples.npz",
            mean=(0.5, 0.25, 1),
            std=(2,),
            keep=("head.*",),
            max_drop=0.0,
        ),
        OutputOptions(save=tmp_path / "small.pt2"),
    )


def test_what_is_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "calibration")
    job = read_job(written(tmp_path, WHOLE))
    for folder in (tmp_path, tmp_path / "below"):  # paths are right from wherever the file lies
        folder.mkdir(exist_ok=True)
        sections = sections_of(job, folder)
        jsonschema.validate(sections, _with_nulls(recipe_schema()))
        assert read_job(written(folder, toml_of(sections), "again.toml")) == job
        assert read_job(written(folder, json.dumps(sections), "again.json")) == job
    assert str(tmp_path) not in toml_of(sections_of(job, tmp_path))  # a folder may be moved with its recipe


def _with_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """Reports have every option, also those without a value."""
    for section in schema["properties"].values():
        for name, option in section.get("properties", {}).items():
            section["properties"][name] = {"anyOf": [option, {"type": "null"}]}
    return schema


MISTAKES = {
    "[budget]\nratoi = 0.5": "[budget] has no option 'ratoi'. The nearest is 'ratio'.",
    "[budgets]\nratio = 0.5": "there is no section 'budgets'. The nearest is 'budget'.",
    "ratio = 0.5": "there is no section 'ratio'. 'ratio' belongs to [budget].",
    "[ranking]\nratio = 0.5": "[ranking] has no option 'ratio'. It belongs to [budget].",
    "budget = 3": "'budget' is a section: write [budget], and its options below.",
    "[budget]\nratio = 'half'": '[budget] ratio = "half" is no number.',
    "[budget]\nratio = true": "[budget] ratio = true is no number.",
    "[budget]\nratio = 2": "ratio 2.0 is not between 0 and 1.",
    "[budget]\nratio = 0.5\ntarget = 'macs=1G'": "ratio 0.5 and target 'macs=1G' both say how much goes. Give one",
    "[budget]\nof = 'params'\ntarget = 'macs=1G'": "of 'params' and target 'macs=1G' limit different things.",
    "[budget]\nscope = 'global'\nallocate = 'greedy'": "scope 'global' and allocate 'greedy' both say which layers",
    "[training]\ndistill = false\nalpha = 0.9": "leave out --no-distill, or these.",
    "[training]\ndistill = false\nhints = 3": "leave out --no-distill, or --hints.",
    "[measuring]\nbench = false\n[gates]\nmin_speedup = 2": "--min-speedup needs the latency; leave out --no-bench.",
    "[budget]\nmultiple_of = 'few'": "[budget] multiple_of few: it is 'auto' or a whole number, such as 8.",
    "[data]\nsamples = 1.5": "[data] samples = 1.5 is no whole number.",
    "[data]\nsamples = 0": "[data] samples = 0 is below 1.",
    "[data]\nmean = 'grey'": "[data] mean grey: it is one number or one per channel",
    "[coupling]\nkeep = [1]": "[coupling] keep = 1 is no text. Put it in quotes.",
    "[tracing]\nstatic_batch = 1": "[tracing] static_batch = 1 is no true or false.",
    "[recovery]\nrecover = 'all'": "recover 'all' is unknown; it is one of",
    "[recovery]\nrecover = 'affine'": "recover affine needs data, and none was given",
    "[budget]\nratio = ": "recipe.toml is no TOML: ",
    "schema = 'slim-model-recipe/9'": 'is of schema "slim-model-recipe/9"; this version of slim-model reads',
    "[data]\ndata = 'npz:${NOWHERE_SET}'": "asks for the environment variable NOWHERE_SET, which is not set.",
    "[outputs]\nsave = 'small.bin'": "the ending says what is written",
    f"[budget]\nratio = {'1' * 400}": "[budget] ratio is too large for a number of floating point.",
    f"seed = {2**32}": "seed = 4294967296 is above 4294967295.",
    "seed = -1": "seed = -1 is below 0.",
    "[gates]\nmax_drop = 1": "max_drop 1 allows any loss: it is a share, and 0.01 is one point.",
    "[gates]\nmax_drop = nan": "max_drop nan allows any loss",
    "[gates]\nmin_speedup = nan": "min_speedup nan is no speed-up",
    "[gates]\nmin_speedup = 0": "min_speedup 0 is no speed-up",
    "[data]\nmean = [[0.5]]": "[data] mean = [...] is no text.",
    "[data]\nmean = ['grey']": "[data] mean grey: it is one number or one per channel",
    "[data]\ndata = 'npz:${PLACE:-here}'": "'${PLACE:-here}' names no environment variable. Write ${NAME}, or $${",
    "[data]\ndata = 'npz:${PLACE'": "'${PLACE' names no environment variable.",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_place(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_job(written(tmp_path, text), source=Path("in.pt"), target=Path("out.onnx"))
    assert str(tmp_path / "recipe.toml") in str(refused.value)
    assert MISTAKES[text] in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("recipe.toml", "", "[source] has no 'path', the model."),
        ("recipe.toml", "[source]\npath = 'in.pt'", "[outputs] has no 'onnx', the file to write."),
        ("recipe.ini", "", "it is one of .toml, .json, .yaml, .yml."),
        ("recipe.json", '{"budget": {"ratio": 0.5, "ratio": 0.9}}', "is no JSON: 'ratio' stands there twice."),
        ("recipe.yaml", "budget: {ratio: 0.5}\nbudget: {ratio: 0.9}", "is no YAML: 'budget' stands there twice."),
        ("recipe.yaml", "1: {ratio: 0.5}", "there is no section '1'."),
        ("recipe.yaml", "budget: {2: 0.5}", "[budget] has no option '2'."),
        ("recipe.yaml", "null: {ratio: 0.5}", "there is no section 'None'."),
        ("recipe.yaml", "schema: [1]", "is of schema [...];"),
        ("recipe.toml", "\ufeff[budget]\nratio = 0.5", "[source] has no 'path', the model."),
        ("recipe.json", '\ufeff{"budget": {"ratio": 0.5}}', "[source] has no 'path', the model."),
        ("recipe.json", "[1]", "holds no sections."),
        ("report.json", '{"schema": "slim-model-report/9"}', f"this version reads up to {REPORT_SCHEMA}."),
        ("report.json", '{"schema": "slim-model-report/2"}', "is no whole report"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(name: str, text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_job(written(tmp_path, text, name))
    assert told in str(refused.value)
    with pytest.raises(InputError, match="cannot read"):
        read_job(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is no text"):
        read_job(tmp_path / "bytes.toml")


@pytest.mark.parametrize("key", ["path", "arch", "inputs"])
def test_a_short_yaml_that_holds_billions_is_refused(key: str, tmp_path: Path) -> None:
    """Ten times ten aliases, nine deep: written out, the message alone would fill the memory."""
    rows = ["    - &x0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"    - &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 10)]
    text = "\n".join([f"source:\n  {key}:", *rows, "outputs: {onnx: out.onnx}\n"])
    with pytest.raises(InputError, match=rf"\[source\] {key} = \[...\] is no text"):
        read_job(written(tmp_path, text, "recipe.yaml"))


def test_a_password_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that a recipe took a secret for from the environment once stood whole in every report."""
    text = '[source]\npath = "in.pt"\n[outputs]\nonnx = "o.onnx"\nmlflow = "https://ci:${TOKEN}@host/a@b"'
    for token, shown in (("s3cr@et", "https://host/a@b"), ("secret", "https://host/a@b")):
        monkeypatch.setenv("TOKEN", token)
        job = read_job(written(tmp_path, text))
        assert token in str(job.outputs.mlflow)
        sections = sections_of(job, tmp_path)
        assert sections["outputs"]["mlflow"] == shown
        assert token not in toml_of(sections)


def test_a_path_may_look_like_a_variable(tmp_path: Path) -> None:
    """Two dollars are one, and what is written is read as it was."""
    job = read_job(written(tmp_path, '[source]\npath = "$${A}.pt"\narch = "$${B}.py:net"\n[outputs]\nonnx = "o.onnx"'))
    assert (job.source.path, job.source.options.arch) == (tmp_path / "${A}.pt", f"{tmp_path}/${{B}}.py:net")
    sections = sections_of(job, tmp_path)
    assert read_job(written(tmp_path, toml_of(sections), "again.toml")) == job
    assert read_job(written(tmp_path, json.dumps(sections), "again.json")) == job


@pytest.mark.parametrize(
    ("text", "change", "left"),
    [
        ("ratio = 0.25", {"target": "macs=1G"}, {"target": "macs=1G"}),
        ("ratio = 0.25\nof = 'params'", {"target": "macs=1G"}, {"target": "macs=1G"}),
        ("target = 'macs=1G'", {"ratio": 0.25}, {"ratio": 0.25}),
        ("target = 'macs=1G'", {"of": "params"}, {"of": "params"}),
        ("scope = 'global'", {"allocate": "greedy"}, {"allocate": "greedy"}),
        ("allocate = 'greedy'", {"scope": "global"}, {"scope": "global"}),
        ("ratio = 0.25", {"ratio": 0.3, "target": "macs=1G"}, "both say how much goes"),
    ],
)
def test_what_overrides_takes_what_it_excludes_away(text: str, change: Any, left: Any, tmp_path: Path) -> None:
    """A target once won over any ratio, also over one of the command line, and said nothing."""
    file = written(tmp_path, f"[budget]\n{text}")
    if isinstance(left, str):
        with pytest.raises(InputError, match=left):
            read_job(file, change, source=Path("in.pt"), target=Path("out.onnx"))
        return
    job = read_job(file, change, source=Path("in.pt"), target=Path("out.onnx"))
    assert job.recipe == Recipe.of(**left)
    assert read_job(file, source=Path("in.pt"), target=Path("out.onnx")).recipe.but(**change) == job.recipe


def test_a_report_of_a_target_says_no_ratio_and_one_that_does_is_read(tmp_path: Path) -> None:
    job = job_of({"target": "macs=1G"}, tmp_path / "in.pt", tmp_path / "out.onnx")
    sections = sections_of(replace(job, recipe=job.recipe.decided()), tmp_path)
    assert sections["budget"]["ratio"] is None
    sections["budget"]["ratio"] = 0.5  # as reports had it
    old = {"schema": REPORT_SCHEMA, "recipe": sections, "source": {"sha256": "0" * 64}}
    assert read_job(written(tmp_path, json.dumps(old), "report.json")).recipe == job.recipe.decided()


def test_a_report_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Its options stood in one list, and it did not know where IN and OUT.onnx were."""
    recipe = {"ratio": 0.25, "criterion": "l2", "recover": None, "multiple_of": "auto", "block": 8, "seed": 2}
    old = {"schema": "slim-model-report/1", "recipe": recipe, "source": {"sha256": "0" * 64}}
    file = written(tmp_path, json.dumps(old), "report.json")
    job = read_job(file, source=Path("in.pt"), target=Path("out.onnx"))
    assert job.recipe == Recipe.of(ratio=0.25, criterion="l2", multiple_of=8, seed=2)
    with pytest.raises(InputError, match="--source IN"):
        read_job(file)


def test_a_report_repeats_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte, from another working folder, after the folder of the run was moved; also by its written recipe.
    Another IN under the same name is told."""
    folder = tmp_path / "first"
    folder.mkdir()
    torch.save(trained(Residual()).state_dict(), folder / "in.pt")
    recipe = """
        [source]
        path = "in.pt"
        arch = "small_nets:Residual"
        inputs = "2x3x8x8"
        [measuring]
        bench = false
        [outputs]
        onnx = "out.onnx"
        report = "report.json"
        write_recipe = "used.toml"
    """
    file = written(folder, recipe)
    assert command(["run", str(file), "--ratio", "0.25"]) == 0, capsys.readouterr().err
    once = (folder / "out.onnx").read_bytes()
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    for again in ("report.json", "used.toml"):
        other = tmp_path / "again.onnx"
        assert command(["run", str(moved / again), "--onnx", str(other)]) == 0, capsys.readouterr().err
        assert other.read_bytes() == once
    report = json.loads((moved / "report.json").read_text())
    assert not any("sha256" in note for note in report["warnings"])
    assert (report["recipe"]["budget"]["ratio"], report["recipe"]["recovery"]["recover"]) == (0.25, "none")
    torch.save({k: v + 0.01 for k, v in torch.load(moved / "in.pt").items()}, moved / "in.pt")
    assert command(["run", str(moved / "report.json")]) == 0
    assert "is not the file that the report tells of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "name"),
    [("onnx", "recipe.toml"), ("report", "recipe.toml"), ("html", "data.npz"), ("write_recipe", "nets.py")]
    + [("save", "other.pt"), ("summary", "link.md")],
)
def test_nothing_is_written_over_what_is_read(
    place: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe, code, data and examples: a run that ended well once left its HTML where the user's code had been."""
    for file in ("data.npz", "nets.py", "other.pt", "in.pt"):
        (tmp_path / file).write_text(file)
    (tmp_path / "link.md").symlink_to(tmp_path / "nets.py")
    rest = "" if place == "onnx" else 'onnx = "out.onnx"\n'
    recipe = f"""
        [source]
        path = "in.pt"
        arch = "nets.py:net"
        example = "other.pt"
        [data]
        data = "npz:data.npz"
        [outputs]
        {rest}{place} = "{name}"
    """
    written(tmp_path, recipe)
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert command(["run", str(tmp_path / "recipe.toml")]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / name} would be written over" in told
    assert "which is read. Give another name." in told
    asked = ["run", str(tmp_path / "recipe.toml"), "--log-file", str(tmp_path / "nets.py")]
    assert command(asked) == 2
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before


def test_pages_of_several_runs_are_written_over_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, '[source]\npath = "in.pt"\n[outputs]\nonnx = "out.onnx"')
    for page in ("recipe.toml", "in.pt"):
        for option in ("--html", "--summary"):
            assert command(["sweep", "recipe.toml", "--ratio", "0.3,0.5", option, page]) == 2
            assert f"{page} would be written over" in capsys.readouterr().err
    assert command(["compare", "a.json", "b.json", "--html", "b.json"]) == 2
    assert "b.json would be written over" in capsys.readouterr().err


def test_the_schema_has_every_option() -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == ["schema", "seed", *SECTIONS]
    recipe = {"schema": RECIPE_SCHEMA, "budget": {"ratio": 0.5, "multiple_of": "auto"}, "data": {"mean": [0.5]}}
    jsonschema.validate(recipe, schema)
    for wrong in ({"budget": {"ratoi": 1}}, {"budget": {"scope": "all"}}, {"data": {"samples": 0}}, {"ratio": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_schemas_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    titles = {"recipe": RECIPE_SCHEMA, "report": REPORT_SCHEMA, "quantized": QUANTIZED_SCHEMA}
    for name, title in titles.items():
        assert command(["schema", name]) == 0
        printed = capsys.readouterr().out
        published = Path(__file__).parents[2] / f"docs/schemas/{name}.json"
        assert printed == published.read_text(), f"slim-model schema {name} > docs/schemas/{name}.json"
        schema = json.loads(printed)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["title"] == title
    assert command(["schema", "plan"]) == 2
    assert "there are: recipe, report, quantized" in capsys.readouterr().err
