"""A run as others see it: the summary of a CI job, the model card, MLflow. They say what the report says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from slim_model.cli import run as command
from slim_model.commands import tracking
from slim_model.errors import GateError
from slim_model.recipe_files.job import job_of
from slim_model.reporting.markdown.documents import summary
from small_nets import RECIPE, Residual, trained

tracking_client = pytest.importorskip("mlflow.tracking", reason="MLflow is not installed").MlflowClient
RUN = ["in.pt", "out.onnx", "--arch", "small_nets:Residual", "--input", "1x3x16x16", "--multiple-of", "1", "--no-bench"]
RUN += ["--data", "npz:data.npz", "--summary", "summary.md", "--model-card", "card.md", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that is handed out, and one whose gate cannot be met, in folders of their own."""
    folder = tmp_path_factory.mktemp("told")
    drawn = np.random.default_rng(0)
    images, labels = drawn.random((60, 3, 16, 16), np.float32), drawn.integers(0, 4, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs no database
        for name, gate, code in (("done", [], 0), ("refused", ["--max-drop", "-1"], 3)):
            (folder / name).mkdir()
            patch.chdir(folder / name)
            torch.save(trained(Residual()).state_dict(), "in.pt")
            np.savez("data.npz", x=images, y=labels)
            asked = [*RUN, *gate, "--report", "report.json", "--mlflow", (folder / "runs").as_uri()]
            assert command(asked) == code
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def cells(markdown: str) -> list[list[str]]:
    """The rows of every table, as a reader sees them."""
    tokens = MarkdownIt().enable("table").parse(markdown)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level >= 3:
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


def test_the_summary_says_what_the_report_says(folder: Path) -> None:
    text, report = (folder / "done/summary.md").read_text(), report_of(folder / "done")
    rows = cells(text)
    assert ["multiply-adds", f"{report['dense']['macs'] / 1e6:,.2f} M", f"{report['slim']['macs'] / 1e6:,.2f} M"] in [
        row[:3] for row in rows
    ]
    assert [[g["name"], str(g["before"]), str(g["after"])] in rows for g in report["groups"]] == [True] * len(
        report["groups"]
    )
    assert "in.pt: slim and proven" in text.splitlines()[0]


def test_a_gate_that_is_not_met_is_in_the_summary(folder: Path) -> None:
    text = (folder / "refused/summary.md").read_text()
    assert "not handed out" in text.splitlines()[0]
    assert re.search(r"accuracy fell from .* to ", text)
    assert not (folder / "refused/out.onnx").exists()
    assert not (folder / "refused/card.md").exists()  # of a file that is not there


def test_names_are_no_markup(folder: Path) -> None:
    report = report_of(folder / "done")
    report["groups"][0]["name"] = "a|b <b>*c*</b>"
    assert ["a|b <b>*c*</b>", *map(str, (report["groups"][0]["before"], report["groups"][0]["after"]))] in cells(
        summary(report)
    )


def test_the_model_card_is_one(folder: Path) -> None:
    card = ModelCard.load(folder / "done/card.md")
    assert card.data.to_dict()["tags"] == ["onnx", "onnxruntime", "pruning", "slim-model"]
    assert card.data.metrics == ["accuracy"]
    assert report_of(folder / "done")["source"]["sha256"] in card.text
    assert str(folder) not in card.content  # where it was made is nobody's business
    assert "multiple_of = 1" in card.text


@pytest.mark.parametrize(("name", "status"), [("done", "FINISHED"), ("refused", "FAILED")])
def test_mlflow_is_told_of_both(folder: Path, name: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client, report = tracking_client(tracking_uri=(folder / "runs").as_uri()), report_of(folder / name)
    experiment = client.get_experiment_by_name("slim-model")
    (run,) = (run for run in client.search_runs([experiment.experiment_id]) if run.info.status == status)
    assert run.data.params["budget.ratio"] == "0.5"
    assert run.data.params["source.arch"] == "small_nets:Residual"
    assert run.data.metrics["macs"] == report["slim"]["macs"]
    assert run.data.metrics["accuracy"] == report["steps"][-1]["accuracy"]
    assert run.data.metrics["dense.params"] == report["dense"]["params"]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    written = {"report.json", "summary.md"}
    assert files == (written | {"out.onnx", "card.md"} if status == "FINISHED" else written)
    assert ("handed out" in run.data.tags.get("error", "")) == (status == "FAILED")


def test_a_sweep_tells_of_every_point(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row and a run each, the one that failed too."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("in.pt", str(folder / "done/in.pt")))
    uri = (tmp_path / "runs").as_uri()
    asked = ["--target", "macs=1", "--target", "macs=1.5M", "--into", "points"]
    assert command(["sweep", "recipe.toml", *asked, "--summary", "points.md", "--mlflow", uri]) == 3
    assert "1 of 2 points failed" in capsys.readouterr().err
    rows = cells((tmp_path / "points.md").read_text())
    report = json.loads((tmp_path / "points/target=macs=1.5M.json").read_text())
    (done,) = (row for row in rows if row[0] == "target=macs=1.5M")
    macs = done[rows[0].index("multiply-adds")]
    assert macs.startswith(f"{report['slim']['macs'] / 1e6:,.2f} M (")
    (failed,) = (row for row in rows if row[0] == "target=macs=1")
    assert "macs cannot come down to 1" in failed[1]
    client = tracking_client(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("slim-model").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    assert all(row.info.status == "FAILED" or row.data.metrics["macs"] == report["slim"]["macs"] for row in runs)


def test_mlflow_that_cannot_be_had_is_said_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder / "done")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    assert command([*RUN, "--mlflow", "nowhere://x"]) == 2
    assert "--mlflow nowhere://x: MLflow says" in capsys.readouterr().err


def test_a_server_that_is_gone_at_the_end_loses_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def finish(self, *_: object) -> None:
            raise ConnectionError("the server is gone")

    monkeypatch.setattr(tracking._Run, "start", lambda *_: Gone())
    job, notes = job_of({"mlflow": "http://127.0.0.1:9"}, Path("in.pt"), Path("out.onnx")), list[str]()
    with tracking.tracked(job, notes.append):
        pass
    assert "MLflow was not told how the run ended: ConnectionError: the server is gone" in notes
    with pytest.raises(GateError), tracking.tracked(job, notes.append):  # the run's own error is what is raised
        raise GateError("too slow")
