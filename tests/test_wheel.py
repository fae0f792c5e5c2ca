"""The wheel: it holds the whole package, and does the main job outside the checkout, also without POSIX."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from source_names import SOURCE

PROJECT = Path(__file__).parents[1]
NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 12, 5))
"""
WITHOUT_POSIX = """
import pathlib, signal, sys

import psutil  # it has parts for each system

for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
del signal.SIGPIPE
read = pathlib.Path.read_text


def read_text(self, *arguments, **options):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return read(self, *arguments, **options)


pathlib.Path.read_text = read_text

import slim_model
from slim_model.cli import main

assert pathlib.Path(slim_model.__file__).is_relative_to(sys.argv.pop(1)), slim_model.__file__
main()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds, as an installation puts it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    ran = subprocess.run(build, cwd=PROJECT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_holds_every_file_of_the_package(installed: Path) -> None:
    ours = {path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    package = installed / "slim_model"
    assert ours == {path.relative_to(package) for path in package.rglob("*") if path.is_file()}


def test_it_says_what_it_is(installed: Path) -> None:
    (about,) = installed.glob("*.dist-info")
    text = (about / "METADATA").read_text()
    for line in ("Requires-Python: >=3.11", "License-Expression: Apache-2.0", "Classifier: Typing :: Typed"):
        assert line in text
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", text, re.M))
    assert extras >= {"dev", "plot", "html", "openvino", "energy", "hf"}
    install = (PROJECT / "docs/first_steps.md").read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", install, re.M)) == extras
    assert (about / "licenses/LICENSE").exists()
    assert "slim-model = slim_model.cli:main" in (about / "entry_points.txt").read_text()


def test_it_does_the_main_job_outside_the_checkout_and_without_posix(installed: Path, tmp_path: Path) -> None:
    """Modules, a signal and files that only POSIX systems have are absent."""
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "run.py").write_text(textwrap.dedent(WITHOUT_POSIX))
    make = "import torch, nets; torch.save(nets.net().state_dict(), 'in.pt')"
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, env=environment, check=True)
    run = ["run.py", str(installed), "in.pt", "out.onnx", "--arch", "nets.py:net", "--input", "1x3x16x16", "--no-bench"]
    run += ["--html", "report.html", "--save", "small.pt2"]
    ran = subprocess.run([sys.executable, *run], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "wrote out.onnx, small.pt2, report.html" in " ".join(ran.stdout.split())
