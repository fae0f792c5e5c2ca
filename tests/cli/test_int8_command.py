"""``--int8`` and ``slim-model quantize``, from the file to the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from command_runs import RESIDUAL, Command, untouched
from slim_model.recipe_files.read import read_job
from slim_model.reporting.html.page import html_page
from slim_model.reporting.quantized_report import quantized_schema
from slim_model.reporting.report_schema import report_schema


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 samples that Residual takes."""
    place = tmp_path_factory.mktemp("data") / "noise.npz"
    draw = np.random.default_rng(0)
    np.savez(place, x=draw.normal(size=(60, 3, 16, 16)).astype(np.float32), y=draw.integers(5, size=60))
    return f"npz:{place}"


def is_int8(place: Path) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in onnx.load(place).graph.node)


def test_int8_is_what_quantize_makes_of_the_fp32_file(command: Command, weights: Path, out: Path, data: str) -> None:
    folder = out.parent
    fp32, again, report = folder / "fp32.onnx", folder / "again.onnx", folder / "r.json"
    ran = command(
        weights, out, *RESIDUAL, "--data", data, "--int8", "--min-agreement", "0.5", "--no-bench", "--keep-fp32", fp32,
        "--report", report,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "int8 was written: u8s8-7bit, minmax" in ran.out
    assert is_int8(out)
    assert not is_int8(fp32)
    tried = folder / "tried.json"
    options = ("--data", data, "--min-agreement", "0.5", "--no-bench")
    other = command("quantize", fp32, again, *options, "--report", tried)
    assert other.code == 0, other.err
    assert again.read_bytes() == out.read_bytes()
    jsonschema.validate(json.loads(tried.read_text()), quantized_schema())
    rows = folder / "rows.json"
    timed = command("bench", fp32, out, "--json", rows, "--rounds", "5")
    assert timed.code == 0, timed.err
    assert [json.loads(line)["file"] for line in rows.read_text().splitlines()] == [fp32.name, out.name]
    written = json.loads(report.read_text())
    jsonschema.validate(written, report_schema())
    check_report(written, fp32, out)
    assert read_job(report).recipe.quantizing.int8_form == "u8s8-7bit"  # a run of the report writes this form


def check_report(written: dict[str, Any], fp32: Path, out: Path) -> None:
    int8 = written["int8"]
    assert (int8["fp32_bytes"], int8["int8_bytes"]) == (fp32.stat().st_size, out.stat().st_size)
    assert (int8["calibrated"], int8["held_out"]) == (39, 9)  # of 48; every fifth of 60 is the test part
    assert written["steps"][-1]["name"] == "int8"
    assert written["steps"][-1]["accuracy"] == int8["int8_accuracy"] is not None
    page = html_page(written)
    assert f"{', '.join([int8['form'], int8['calibration'], *int8['repairs']])} <span" in page
    assert "judged on 9 others" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--int8",), "int8 is calibrated on data, and none was given: add --data SPEC."),
        (("--keep-fp32", "f.onnx"), "--keep-fp32 names the file before int8"),
        (("--int8-form", "int4"), "int8_form 'int4' is unknown; it is one of u8s8-7bit, u8s8,"),
        (("--min-agreement", "95"), "min_agreement 95 is a share"),
    ],
)
def test_bad_options(command: Command, weights: Path, out: Path, options: tuple[str, ...], said: str) -> None:
    ran = command(weights, out, *RESIDUAL, *options)
    assert ran.code == 2
    assert said in ran.message
    assert untouched(out)


def test_quantize_takes_onnx_and_data(command: Command, weights: Path, out: Path, data: str) -> None:
    ran = command("quantize", weights, out, "--data", data)
    assert (ran.code, "is no .onnx file" in ran.message) == (2, True)
    ran = command("quantize", weights.with_suffix(".onnx"), out)
    assert (ran.code, "add --data SPEC" in ran.message) == (2, True)
    assert untouched(out)
