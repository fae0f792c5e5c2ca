"""The README and the pages in docs are true: their Python runs, and their command lines run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from slim_model import cli
from slim_model.commands import bench
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.trace import trace
from slim_model.measuring.peak_memory import PeakMemory

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md"))]
PYTHON = [(page, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]
COMMANDS = [line for page in PAGES for line in re.findall(r"^\$ slim-model (.+)$", page.read_text(), re.M)]

RUN_ELSEWHERE = {"ultralytics": "loading/test_ultralytics.py"}
"""Packages that are installed for no test here, and where what a page shows of them is run."""


@pytest.mark.parametrize(
    ("page", "block"), PYTHON, ids=[f"{page.name}-{number}" for number, (page, _) in enumerate(PYTHON)]
)
def test_python_block(page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block asserts what the page says of it; a report that it made is that of a smaller model."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    code = compile(block, page.name, "exec")
    if package := next((name for name in RUN_ELSEWHERE if f"from {name} import" in block), None):
        pytest.skip(f"needs {package} and a file that it made; {RUN_ELSEWHERE[package]} runs the same class")
    exec(code, names)
    assert "report" in names or "assert" in block
    if report := names.get("report"):
        assert report.proof["masked_max_rel_error"] <= 1e-4  # type: ignore[attr-defined]
        assert report.slim["macs"] < report.dense["macs"]  # type: ignore[attr-defined]


def images_to_classes() -> nn.Module:
    """As a ResNet begins and ends, with 29.5 million multiply-adds at 224 x 224 (3 x 16 x 7 x 7 x 112 x 112)."""
    stem, more = nn.Conv2d(3, 16, 7, 2, 3), nn.Conv2d(16, 32, 3, 2, 1)
    pools = nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(stem, nn.ReLU(), pools[0], more, nn.ReLU(), pools[1], nn.Flatten(), nn.Linear(32, 10)).eval()


def draw_pictures(folder: Path) -> None:
    """Forty of two classes."""
    drawn = torch.Generator().manual_seed(0)
    for number in range(40):
        place = folder / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        torchvision.io.write_png(torch.randint(0, 256, (3, 16, 16), generator=drawn, dtype=torch.uint8), str(place))


@pytest.mark.parametrize("line", COMMANDS)
def test_command_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words on a smaller model of the same kind."""
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)
    if arguments[0] == "explain":
        torch.save(torchvision.models.resnet18(), arguments[1])
        assert cli.run(arguments) == 0
        assert Path("coupling.svg").read_text().startswith("<svg")
        return
    if arguments[0] == "bench":
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 4)).eval()
        graph = trace(net, (torch.randn(2, 3, 8, 8),))
        for name in arguments[1:3]:
            to_onnx(graph, Path(name), opset=None, metadata={})
        monkeypatch.setattr(
            bench, "measure_memory", lambda *_, **__: PeakMemory(30_000_000, 20_000_000, None)
        )  # a process a row
        assert cli.run([*arguments, "--rounds", "3", "--seconds", "0.3"]) == 0
        assert len(Path("rows.json").read_text().splitlines()) == 8  # two files, batches and counts of threads
        return
    if "imagefolder:pictures" in arguments:
        draw_pictures(Path("pictures"))
    if arguments[0] == "quantize":
        to_onnx(trace(images_to_classes(), (torch.randn(2, 3, 64, 64),)), Path(arguments[1]), opset=None, metadata={})
    else:
        torch.save(images_to_classes(), arguments[0])
    if "--target" in arguments:  # of a smaller model, whose latency is another
        arguments[arguments.index("--target") + 1] = "macs=19M"
    assert cli.run([*arguments, "--no-bench"]) == 0
    assert Path(arguments[1]).stat().st_size > 0


def test_there_are_both() -> None:
    assert len(PYTHON) >= 2
    assert len(COMMANDS) >= 2
