"""The README is true: its Python runs, and its command line runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision

from slim_model import cli
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.trace import trace

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = re.findall(r"^\$ slim-model (.+)$", README, re.M)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_block(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    report = names["report"]
    assert report.proof["masked_max_rel_error"] <= 1e-4  # type: ignore[attr-defined]
    assert report.slim["macs"] < report.dense["macs"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", COMMANDS)
def test_command_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words on a smaller model of the same kind."""
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)
    if arguments[0] == "explain":
        torch.save(torchvision.models.resnet18(), arguments[1])
        assert cli._run(arguments) == 0
        assert Path("coupling.svg").read_text().startswith("<svg")
        return
    if arguments[0] == "bench":
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 4)).eval()
        graph = trace(net, (torch.randn(2, 3, 8, 8),))
        for name in arguments[1:3]:
            to_onnx(graph, Path(name), opset=None, metadata={})
        assert cli._run([*arguments, "--rounds", "3", "--seconds", "0.3"]) == 0
        assert len(Path("rows.json").read_text().splitlines()) == 8  # two files, batches and counts of threads
        return
    torch.save(torchvision.models.squeezenet1_1(), arguments[0])
    if "--target" in arguments:  # of a smaller model, whose latency is another
        arguments[arguments.index("--target") + 1] = "macs=100M"
    assert cli._run([*arguments, "--no-bench"]) == 0
    assert Path(arguments[1]).stat().st_size > 0


def test_the_readme_has_both() -> None:
    assert len(PYTHON) >= 2
    assert len(COMMANDS) >= 2
