"""The four examples, from one trained network: each client gives the answers that onnxruntime gives in Python."""

from __future__ import annotations

import functools
import http.server
import json
import re
import runpy
import shutil
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from slim_model.cli import run as command

PROJECT = Path(__file__).parents[1]
EXAMPLES = PROJECT / "examples"
BROWSER = EXAMPLES / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples were made as ``examples/run`` makes them, beside a copy of ``examples``."""
    project = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("node_modules", "__pycache__")
    shutil.copytree(EXAMPLES, project / "examples", ignore=ignored)
    made = project / "build/examples"
    digits = runpy.run_path(str(project / "examples/digits.py"))
    digits["train"](made)
    recipe = project / "examples/recipe.toml"
    assert command(["run", str(recipe), "--no-bench", "--quiet"]) == 0
    return made


@pytest.fixture(scope="module")
def right(folder: Path) -> str:
    """What each example prints, by the file and the images themselves."""
    images = np.fromfile(folder / "images.f32", np.float32).reshape(-1, 1, 8, 8)
    labels = np.fromfile(folder / "labels.u8", np.uint8)
    session = onnxruntime.InferenceSession(folder / "digits.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return f"{(logits.argmax(1) == labels).sum()} of {len(labels)} test digits right"


def test_the_gate_holds_and_half_is_gone(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["slim"]["macs"] < report["dense"]["macs"] / 3
    accuracies = [step["accuracy"] for step in report["steps"]]
    assert accuracies[0] > 0.97
    assert accuracies[-1] >= accuracies[0] - 0.02


def test_a_gate_that_is_not_met_hands_out_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = folder.parents[1] / "examples/recipe.toml"
    asked = ["--no-bench", "--quiet", "--ratio", "0.9", "--recover", "none", "--report", str(folder / "refused.json")]
    assert command(["run", str(recipe), "--onnx", str(folder / "refused.onnx"), *asked]) == 3
    assert "It is not handed out" in capsys.readouterr().err
    assert not (folder / "refused.onnx").exists()
    assert (folder / "refused.json").exists()


def test_in_python(folder: Path, right: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "classify.py"), str(folder / "digits.onnx"), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == right


@pytest.mark.skipif(sys.platform != "linux", reason="the Makefile is for Linux")
@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="there is no C compiler with make here")
def test_in_c(folder: Path, right: str) -> None:
    make = ["make", "-s", "-C", str(EXAMPLES / "c"), f"OUT={folder}", f"PYTHON={sys.executable}"]
    subprocess.run(make, check=True)
    files = [str(folder / name) for name in ("digits.onnx", "images.f32", "labels.u8")]
    ran = subprocess.run([str(folder / "classify"), *files], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == right
    none = subprocess.run([str(folder / "classify"), "none.onnx", *files[1:]], capture_output=True, text=True)
    assert none.returncode == 1
    assert "onnxruntime: " in none.stderr


@contextmanager
def served(project: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(project))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.skipif(
    not (BROWSER / "node_modules").exists(), reason="onnxruntime-web is not there: npm ci --prefix examples/browser"
)
def test_in_a_browser(folder: Path, right: str, tmp_path: Path) -> None:
    project = folder.parents[1]
    modules = project / "examples/browser/node_modules"
    modules.symlink_to(BROWSER / "node_modules")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--enable-logging=stderr", f"--user-data-dir={tmp_path}", "--virtual-time-budget=60000", "--dump-dom"]
    with served(project) as address:
        ran = subprocess.run(
            [str(CHROMIUM), *options, f"{address}/examples/browser/"], capture_output=True, text=True, timeout=120
        )
    assert "CONSOLE" not in ran.stderr, ran.stderr
    assert re.search(r'<p id="result">(.*?)</p>', ran.stdout)[1] == right  # type: ignore[index]


def test_as_a_service(folder: Path, right: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="the service needs FastAPI and uvicorn")
    monkeypatch.setenv("MODEL", str(folder / "digits.onnx"))
    app = runpy.run_path(str(EXAMPLES / "service/app.py"), run_name="app")["app"]
    images = np.fromfile(folder / "images.f32", np.float32).reshape(-1, 64)
    labels = np.fromfile(folder / "labels.u8", np.uint8)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler, bind_and_activate=False) as place:
        place.server_bind()
        place.server_activate()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([place.socket],), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{place.server_address[1]}/classify"
        answer = posted(address, {"images": images.round(4).tolist()})
        refused = posted(address, {"images": [[2.0] * 64]})
        server.should_exit = True
        thread.join()
    assert f"{(np.array(answer['digits']) == labels).sum()} of {len(labels)} test digits right" == right
    assert all(0.1 <= share <= 1 for share in answer["certainty"])
    assert refused["code"] == 422


def posted(address: str, content: object) -> dict[str, list[float]]:
    asked = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        return {"code": error.code}  # type: ignore[dict-item]
