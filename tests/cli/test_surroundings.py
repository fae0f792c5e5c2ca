"""What surrounds the command and is of no matter to it: screens, pipes, folders for temporary files, homes, memory."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.table import Table
from rich.text import Text

import slim_model
from command_runs import QUICK, RESIDUAL, TIMEOUT, Command, forked, process, untouched
from slim_model.cli import run
from slim_model.cli.streams import Forgiving, Screen
from slim_model.commands import slim as slim_stages
from source_names import SOURCE

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(slim_model.__file__).parents[1])}
MAIN = "from slim_model.cli import main; main()"


def shell(line: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """``COMMAND`` in the line is slim-model."""
    line = line.replace("COMMAND", f"{sys.executable} -c '{MAIN}'")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT | changes, check=False)


# -- streams --------------------------------------------------------------------------------------------------------

_STEERS = "\x1b]0;mine \x9b2J \u202e [/red] [bold] :smile:"
_SHOWN = r"\x1b]0;mine \x9b2J \u202e [/red] [bold] :smile:"


def test_what_a_file_calls_its_parts_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names come from files that are not the user's own. As rich's markup they once ended the command."""
    screen, table = Screen(width=200, force_terminal=True), Table(box=None)
    table.add_column(_STEERS)
    table.add_row(_STEERS)
    for printed in (_STEERS, Text(_STEERS), Text(_STEERS, style="bold red"), table):
        screen.print(printed)
        told = capsys.readouterr().out
        assert _SHOWN in told
        assert re.sub(r"\x1b\[[\d;]*m", "", told).strip(" \n").isprintable() or printed is table
        assert "\x1b]" not in told


def test_every_message_goes_to_such_a_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, log = tmp_path / "recipe.json", tmp_path / "log.txt"
    recipe.write_text(json.dumps({"source": {"path": f"{_STEERS}.pt"}, "outputs": {"onnx": "out.onnx"}}))
    assert run(["run", str(recipe), "--log-file", str(log)]) == 2
    assert f"{_SHOWN}.pt: there is no such file" in capsys.readouterr().err
    made = [path.name for path in SOURCE.rglob("*.py") if re.search(r"\bConsole\(", path.read_text())]
    assert made == []


@pytest.mark.parametrize("command", ["--help", "--version"])
@pytest.mark.parametrize(
    "where", ["> /dev/full", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| head -c 0", "2>&1 | true"]
)
def test_what_is_printed_may_go_nowhere(command: str, where: str) -> None:
    ran = shell(f"set -o pipefail; COMMAND {command} {where}")
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr
    if where == "> /dev/full":
        assert ran.stderr == "note: what was printed could not be written: No space left on device\n"


@pytest.mark.parametrize("full", [True, False])
def test_a_whole_run_without_a_screen(weights: Path, out: Path, full: bool) -> None:
    """OUT.onnx is whole, and nothing that was printed is in it or beside it."""
    arguments = (weights, out, *RESIDUAL, "--no-bench")
    if full:
        with open("/dev/full", "w") as screen, forked(*arguments, stdout=screen, stderr=screen) as running:
            code = running.wait(timeout=TIMEOUT)
    else:
        code = shell(f"COMMAND {' '.join(map(str, arguments))} >&- 2>&-").returncode
    assert code == 0
    onnx.checker.check_model(str(out), full_check=True)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-"])
def test_an_error_without_a_screen_keeps_its_code(where: str) -> None:
    assert shell(f"COMMAND no_such_file.pt out.onnx {where}").returncode == 2


class Broken(io.TextIOBase):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "pipe"), OSError(errno.EIO, "io"), ValueError("closed")]
)
def test_a_forgiving_stream_goes_on(error: Exception) -> None:
    stream = Forgiving(Broken(error))
    assert stream.write("text") == 4
    stream.writelines(["more", "text"])
    stream.flush()
    assert stream.lost is not None
    assert not stream.closed  # what is not written by us is the stream's own


# -- what the system refuses ----------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[Exception, str]] = {
    "no space": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x"), "No space left on device: /tmp/x"),
    "too many files": (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
    "no memory": (MemoryError(), "not enough memory"),
    "no memory for a tensor": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_system_refuses_is_no_fault_of_ours(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    error, says = REFUSED[name]

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(slim_stages, "compile_model", refuse)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 2
    assert says in ran.message
    assert "fault of slim-model" not in ran.err
    assert untouched(out)


def test_the_end_of_a_file_is_no_interruption(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """typer takes EOFError for Ctrl-D."""

    def end(*_: Any, **__: Any) -> None:
        raise EOFError("no data left in a file")

    monkeypatch.setattr(slim_stages, "compile_model", end)
    ran = command(weights, out, *RESIDUAL, *QUICK)
    assert ran.code == 1
    assert "EOFError: no data left" in ran.message
    assert "interrupted" not in ran.err


# -- folders --------------------------------------------------------------------------------------------------------


def test_without_a_folder_for_temporary_files_that_of_the_output_is_taken(
    command: Command, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/such/folder"])
    used: list[str] = []
    real = slim_stages.compile_model

    def compiling(*arguments: Any, **options: Any) -> Any:
        used.append(tempfile.gettempdir())
        return real(*arguments, **options)

    monkeypatch.setattr(slim_stages, "compile_model", compiling)
    assert command(weights, out, *RESIDUAL, *QUICK).code == 0
    assert used == [str(out.parent)]


def _cache_is_a_file(folder: Path) -> dict[str, str]:
    (folder / "cache").write_text("")
    return {"XDG_CACHE_HOME": str(folder / "cache")}


def _homeless(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder / "none"), "XDG_CACHE_HOME": ""}


@pytest.mark.parametrize("surroundings", [_cache_is_a_file, _homeless])
def test_a_cache_that_cannot_be_is_none(
    command: Command,
    weights: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    surroundings: Callable[[Path], dict[str, str]],
) -> None:
    for name, value in surroundings(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert command(weights, out, *RESIDUAL, *QUICK).code == 0


def test_a_user_without_a_name_or_a_home(weights: Path, out: Path) -> None:
    """As in a container that runs with a bare user number."""
    code = f"""
        import pwd

        def nobody(number):
            raise KeyError("uid not found")

        pwd.getpwuid = nobody
        {MAIN}
    """
    gone = ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in gone}
    arguments = [str(x) for x in (weights, out, *RESIDUAL, "--no-bench")]
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_working_folder_that_was_deleted(weights: Path, out: Path, tmp_path: Path) -> None:
    """PyTorch's own libraries cannot be loaded there."""
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"""
        import os
        os.chdir({str(gone)!r})
        os.rmdir({str(gone)!r})
        from slim_model.cli import main
        main()
    """
    with process(weights, out, *RESIDUAL, code=code) as running:
        _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 2, err
    assert "the working folder was deleted. Change to another one." in err
    assert untouched(out)
