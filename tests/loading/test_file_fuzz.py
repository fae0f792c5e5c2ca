"""Some changed files of every kind, the same ones at every run; scripts/fuzz --files takes other ones, and more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from file_fuzzing import KINDS, FileFuzzer, observed
from limited_process import in_limits
from model_files import small_net

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of a rehearsal need Linux")
EACH = 6


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> FileFuzzer:
    return FileFuzzer(tmp_path_factory.mktemp("fuzz"), slimmed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_read_or_refused(fuzzer: FileFuzzer, kind: str) -> None:
    whole = fuzzer.run_valid(kind)
    assert whole.answer == "0", whole
    for number in range(EACH):
        read = fuzzer.run(kind, number)
        assert read.fine, read


@pytest.mark.parametrize(
    ("deed", "answer"),
    [
        ("import os; os.mkdir('ran')", "DID os.mkdir"),
        ("import os; os.system('true')", "DID os.system"),
        ("open('/nowhere/x.txt', 'w')", "DID open"),
        ("open('x.txt', 'w').close()", "2"),
    ],
)
def test_what_a_file_brings_about_is_seen(tmp_path: Path, monkeypatch: Any, deed: str, answer: str) -> None:
    """The user's own code in place of a file: it may do what it likes, and the hook tells."""
    code = tmp_path / "deed.py"
    code.write_text(deed)
    monkeypatch.chdir(tmp_path)
    torch.save(small_net().state_dict(), "net.pt")
    typed = ["explain", "net.pt", "--arch", f"{code}:Net"]
    assert in_limits(lambda: observed(typed, watched=True)).startswith(answer)
