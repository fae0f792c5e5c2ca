"""Pages of reports: they say what the JSON says, need nothing else, and a browser shows them without an error."""

from __future__ import annotations

import copy
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from slim_model.cli import run as command
from slim_model.reporting.html.page import html_page
from small_nets import Residual, trained

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with --html and --report wrote."""
    folder = tmp_path_factory.mktemp("page")
    torch.save(trained(Residual()).state_dict(), folder / "in.pt")
    images = torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.save(images, folder / "images.pt")
    code = "import torch\nfrom pathlib import Path\n\ndef samples():\n"
    code += "    return torch.load(Path(__file__).with_name('images.pt'))\n"
    (folder / "samples.py").write_text(code)
    arguments = ["in.pt", "out.onnx", "--arch", "small_nets:Residual", "--input", "1x3x16x16", "--multiple-of", "1"]
    arguments += ["--data", "samples.py:samples", "--allocate", "sensitivity", "--of", "macs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command([*arguments, "--report", "report.json", "--html", "report.html"]) == 0
    return folder


def the_report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


class Read(html.parser.HTMLParser):
    """The text of a page, and whether each element is closed that was opened."""

    EMPTY = {"meta", "link", "input", "br"}  # noqa: RUF012

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open, self.references = "", [], []  # type: ignore[var-annotated]
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += f" {data.strip()}" if data.strip() else ""


def test_the_page_says_what_the_report_says(folder: Path) -> None:
    report, page = the_report(folder), Read((folder / "report.html").read_text())
    assert {operator["model"] for operator in report["operators"]} == {"dense", "slim"}
    assert len(report["sensitivity"]) == len(report["groups"])
    told = [report["source"]["sha256"], *(group["name"] for group in report["groups"])]
    told += [pin["why"] for pin in report["pinned"]] + [operator["name"] for operator in report["operators"]]
    told += report["warnings"] + [step["name"] for step in report["steps"]] + ["onnxruntime"]
    assert [words for words in told if words not in page.text] == []
    assert page.references == ["data:,"]  # nothing is fetched


def test_the_picture_of_the_net_has_every_width(folder: Path) -> None:
    """Heights go with the square root of the width: the widest layer fills the picture."""
    report, page = the_report(folder), (folder / "report.html").read_text()
    net = page.partition('<svg class="net"')[2].partition("</svg>")[0]
    drawn = re.findall(r'<rect class="(\w+)" x="(\d+)" y="([\d.]+)" width="8" height="([\d.]+)"', net)
    widest = max(group["before"] for group in report["groups"])
    widths = [width for group in report["groups"] for width in (group["before"], group["after"])]
    assert [round(widest * (float(height) / 100) ** 2) for *_, height in drawn] == widths
    assert [kind for kind, *_ in drawn] == ["dense", "slim"] * len(report["groups"])
    assert all(float(y) * 2 + float(height) == pytest.approx(100, abs=0.02) for *_, y, height in drawn)


def test_what_a_model_is_called_is_text(folder: Path) -> None:
    report = the_report(folder)
    report["source"]["name"] = "<script>alert(1)</script>"
    report["groups"][0]["where"] = "net.py:1: y = a < b & c"
    page = html_page(report)
    assert "<script>alert" not in page
    assert "y = a < b & c" in Read(page).text


def test_a_report_of_python_has_a_page(folder: Path) -> None:
    """Without a file, latency, steps, sensitivity and operators."""
    report = the_report(folder) | {"source": {}, "latency": [], "steps": [], "operators": [], "sensitivity": []}
    del report["recipe"]["source"], report["recipe"]["outputs"]
    assert "given in Python" in Read(html_page(report)).text


def test_runs_are_put_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(the_report(folder))
    other["slim"]["macs"] //= 2
    (folder / "other.json").write_text(json.dumps(other))
    files = [str(folder / name) for name in ("report.json", "other.json")]
    assert command(["compare", *files, "--html", str(folder / "both.html")]) == 0
    shown = f"{other['slim']['macs'] / 1e6:,.2f} M"
    assert shown in capsys.readouterr().out
    page = Read((folder / "both.html").read_text())
    assert shown in page.text
    assert page.text.count(the_report(folder)["groups"][0]["name"]) >= 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("{}", "is no report of slim-model"),
        ('{"schema": "slim-model-report/9"}', "Update slim-model"),
    ],
)
def test_what_is_no_report_is_refused(text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(text)
    assert command(["compare", str(tmp_path / "report.json")]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert command(["compare", str(tmp_path / "none.json")]) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_it_sorts_and_filters(folder: Path, tmp_path: Path) -> None:
    """What is clicked is in the page itself; its console has no error."""
    report = the_report(folder)
    page = (folder / "report.html").read_text()
    clicks = """<script>
        document.querySelector('#t-widths th:nth-child(3)').click();
        document.querySelector('#t-widths th:nth-child(3)').click();
        const filter = document.querySelector('input[data-table="t-widths"]');
        filter.value = 'STEM';
        filter.dispatchEvent(new Event('input'));
    </script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", clicks))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    options += ["--disable-component-update", "--no-first-run", "--enable-logging=stderr", "--v=0"]
    ran = subprocess.run(
        [
            str(CHROMIUM),
            *options,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            f"file://{tmp_path}/page.html",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in ran.stderr, ran.stderr
    table = ran.stdout.partition('id="t-widths"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr( hidden=\"\")?><td>([^<]+)</td>\s*<td data-value=\"(\d+)\"", table)
    assert [int(before) for *_, before in rows] == sorted((g["before"] for g in report["groups"]), reverse=True)
    assert [name for hidden, name, _ in rows if not hidden] == [
        g["name"] for g in report["groups"] if "stem" in g["name"]
    ]
