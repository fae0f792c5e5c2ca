"""Recipes and reports that were changed at random are read, or refused in a sentence: nothing else is raised."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from slim_model.commands.compare import read_reports
from slim_model.errors import InputError
from slim_model.measuring.timing import Comparison, Latency
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import job_of
from slim_model.recipe_files.read import read_job
from slim_model.recipe_files.write import sections_of, toml_of
from slim_model.reporting.report import make_report
from small_nets import Residual, images, trained

_VALUE = re.compile(rb'(?<=[=:] )("[^"]*"|[\d.]+|true|false|null|\[\])')
_PIECES = (
    *(b"null", b"[]", b"{}", b"[[1]]", b"-1", b"1e999", b"NaN", b"inf", b"0x10", b"9" * 5000, b"true", b'"x"', b"'"),
    *(b"=", b"\xff", b"\x00", b'"\\u0000"', b"1979-05-27", b"[budget]\n", b"[[budget]]\n", b"a.b.c = 1\n"),
)


def _files(folder: Path) -> dict[str, bytes]:
    sections = sections_of(job_of({"ratio": 0.5, "data": "npz:d.npz"}, folder / "in.pt", folder / "out.onnx"), folder)
    source = {"name": "in.pt", "sha256": "0" * 64}
    recipe = Recipe.of(ratio=0.5, multiple_of=1)
    compiled = compile_model(trained(Residual()), (images(),), recipe)
    lone = Latency("onnxruntime", 3.0, 2.9, 3.3, 1, 1, "cpu", 60)
    timed = [Comparison("onnxruntime", lone, lone, 1.0, 0.9, 1.1)]
    report = make_report(compiled, recipe, module_is_own=True, sections=sections, source=source, latency=timed)
    older = {"schema": "slim-model-report/1", "recipe": {"ratio": 0.5, "block": 8}, "source": source}
    return {
        "recipe.toml": toml_of(sections).encode(),
        "report.json": report.as_json().encode(),
        "older.json": json.dumps(older).encode(),
    }


def _changed(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(changed))
        values = [match.span() for match in _VALUE.finditer(changed)]
        match draw.choice(["piece", *["value"] * 4, "less", "byte", "twice"]):
            case "piece":
                changed[at : at + draw.randint(1, 30)] = draw.choice(_PIECES)
            case "value" if values:
                start, end = draw.choice(values)
                changed[start:end] = draw.choice(_PIECES)
            case "less":
                del changed[at : at + draw.randint(1, 40)]
            case "byte":
                changed[at] = draw.randrange(256)
            case _:
                changed[at:at] = changed[at : at + 40]
        changed = changed or bytearray(content)
    return bytes(changed)


def test_a_changed_file_is_read_or_refused(tmp_path: Path) -> None:
    files, ends = _files(tmp_path), {"read": 0, "refused": 0}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        read_job(tmp_path / name, source=tmp_path / "in.pt", target=tmp_path / "out.onnx")
    for number in range(300):
        draw = random.Random(number)
        name = draw.choice(list(files))
        (tmp_path / name).write_bytes(_changed(files[name], draw))
        for read in (read_job, lambda file: read_reports([file])):
            try:
                read(tmp_path / name)
                ends["read"] += 1
            except InputError:
                ends["refused"] += 1
    assert min(ends.values()) > 20, ends


def test_a_report_without_a_part_is_no_whole_one(tmp_path: Path) -> None:
    """Its table once ended as a fault of ours."""
    file = tmp_path / "report.json"
    file.write_bytes(_files(tmp_path)["report.json"])
    assert read_reports([file])
    report = json.loads(file.read_text())
    for lacking in ("channels", "dense", "slim", "latency", "steps", "groups", "proof", "environment"):
        for changed in ({k: v for k, v in report.items() if k != lacking}, report | {lacking: 3}):
            file.write_text(json.dumps(changed))
            with pytest.raises(InputError, match="is no whole report"):
                read_reports([file])


@pytest.mark.parametrize("name", ["recipe.json", "recipe.toml"])
def test_values_that_are_nested_too_deep(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a = " * (name[-1] == "l") + "[" * 100_000)
    with pytest.raises(InputError, match=r"nested too deep|is no TOML"):
        read_job(tmp_path / name)
    with pytest.raises(InputError, match="is no JSON"):
        read_reports([tmp_path / name])
