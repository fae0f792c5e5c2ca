"""The plan of a folder, and of its config.json alone, is what a run would do; no weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from slim_model.cli import run
from tiny_folders import tiny_folder


def test_a_configuration_and_its_folder_have_one_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder("mistral", tmp_path)
    said = []
    for name, source in (("folder", folder), ("alone", folder / "config.json")):
        assert run(["plan", str(source), "--ratio", "0.5", "--json", str(tmp_path / f"{name}.json")]) == 0
        said.append(capsys.readouterr().out)
    plans = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("folder", "alone")]
    assert plans[0] == plans[1]
    assert said[0] == said[1]
    assert "MLP channels in each layer: 40 -> 16" in said[0]
    report = tmp_path / "r.json"
    words = (str(folder), str(tmp_path / "out"), "--ratio", "0.5", "--quiet", "--report", str(report))
    assert run([*words]) in (0, None)
    done = json.loads(report.read_text())
    assert {key: done[key] for key in plans[0]} == plans[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "own"}, "model_type 'own' is not among those"),
        ({"model_type": "vit"}, "the plan needs the folder with its weights"),
        ({"model_type": "swin"}, "Give OUT.onnx instead of a folder"),
        ({"hidden_size": "wide"}, "transformers cannot build this configuration"),
    ],
)
def test_a_configuration_without_a_plan(
    change: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((tiny_folder("llama", tmp_path) / "config.json").read_text())
    alone = tmp_path / "config.json"
    alone.write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"} | change))
    assert run(["plan", str(alone)]) in (2, 3)
    assert message in " ".join(capsys.readouterr().err.split())
    assert run(["plan", str(tmp_path / "nowhere")]) == 2
