"""Files that were made to hang or to fill the memory: each is refused in a sentence, within a little of both.
scripts/fuzz --hostile opens each by the command."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from hostile_files import HOSTILE
from limited_process import in_limits
from model_files import NET_SOURCE, opened
from slim_model.errors import InputError
from slim_model.loading import limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of a rehearsal need Linux")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(file: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, options, says = HOSTILE[name]
    if "takes more than 2 s" in says:  # it takes for ever, and less of that is enough here
        monkeypatch.setattr(limits, "time_limit", lambda *_: 2)
    file.with_name("net.py").write_text(textwrap.dedent(NET_SOURCE))
    monkeypatch.chdir(file.parent)
    make(file)

    def work() -> str:
        try:
            opened(file, **options)
        except InputError as error:
            return f"refused: {error}"
        return "read"

    answer = in_limits(work)
    assert answer.startswith("refused: ") or (answer == "read" and not says), answer
    assert says in answer
