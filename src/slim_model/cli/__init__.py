"""The command line: a file each command, ``slim`` for ``slim-model IN OUT.onnx``.

Nothing is decided here, and nothing here imports PyTorch before the arguments are read.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from typing import Any

import typer
from rich.text import Text

from slim_model import distributed
from slim_model.cli.streams import Screen, lost_output, make_forgiving
from slim_model.errors import NO_MEMORY, InputError, SlimError, first_line
from slim_model.late import Late

COMMANDS = {
    "slim": Late("cli.slim:command"),
    "run": Late("cli.run_recipe:command"),
    "sweep": Late("cli.sweep:command"),
    "compare": Late("cli.compare:command"),
    "explain": Late("cli.explain:command"),
    "bench": Late("cli.bench:command"),
    "profile": Late("cli.profile:command"),
    "quantize": Late("cli.quantize:command"),
    "plan": Late("cli.plan:command"),
    "schema": Late("cli.schema:command"),
}
"""``slim-model IN OUT`` means ``slim-model slim IN OUT``, and its help is the help."""

_OTHERS = """Other commands: explain IN says which channels go together, and what the others wait for; run RECIPE takes the
options from a file, sweep RECIPE tries several values of some; compare A.json B.json puts reports side by side;
quantize IN.onnx OUT.onnx makes int8 of a file; bench A.onnx B.onnx times files; profile IN measures layers;
plan FOLDER says what a folder of transformers would lose; schema prints what recipes and reports are checked with."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the command and turns every exception into one message and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    make_forgiving()
    gc.set_threshold(50_000, 20)  # from 700: a seventh of a run was spent looking through what PyTorch has imported
    code = run(sys.argv[1:] if arguments is None else arguments)
    if why := lost_output():
        Screen(stderr=True, soft_wrap=True).print(Text(f"note: what was printed could not be written: {why}"))
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code; errors are printed."""
    errors = Screen(stderr=True, soft_wrap=True)
    with distributed.join_processes():
        return _said(arguments, errors)


def command_named(name: str) -> Any:
    """The command as a parser; the modules of the others are not imported, nor are their options built."""
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.command(epilog=_OTHERS if name == "slim" else None)(COMMANDS[name].load())
    return typer.main.get_command(app)


def _said(arguments: list[str], errors: Screen) -> int:
    named = bool(arguments) and arguments[0] in COMMANDS
    name = arguments[0] if named else "slim"
    try:
        _check_working_folder()
        result = command_named(name).main(
            args=arguments[1:] if named else arguments,
            prog_name=f"slim-model {name}" if named else "slim-model",
            standalone_mode=False,
        )
        return _interrupted(errors) if result == 130 else int(result or 0)  # typer makes 130 of Ctrl-C
    except SlimError as error:
        if distributed.may_speak():
            errors.print(Text("error: ", style="bold red") + Text(str(error)))
        return error.exit_code
    except typer.Abort as abort:
        if isinstance(abort.__cause__, EOFError):  # typer takes the end of a file for the user's wish
            return _unexpected(abort.__cause__, errors)
        return _interrupted(errors)
    except KeyboardInterrupt:
        return _interrupted(errors)
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        return _unexpected(error, errors)


def _check_working_folder() -> None:
    """PyTorch's libraries end the process where it was deleted, with a word of their own."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the working folder was deleted. Change to another one.") from error


def _interrupted(errors: Screen) -> int:
    if distributed.rank() == 0:
        errors.print(Text("interrupted: OUT.onnx is either whole and checked, or as it was"))
    return 130


def _unexpected(error: Exception, errors: Screen) -> int:
    if not distributed.may_speak():  # that another process is gone is no error of its own
        return 1
    if hasattr(error, "format_message"):  # a usage error of the option parser
        errors.print(Text("error: ", style="bold red") + Text(error.format_message()))
        errors.print(Text("See slim-model --help."))
        return 2
    if os.environ.get("SLIM_MODEL_DEBUG"):
        traceback.print_exc()
    if isinstance(error, OSError):  # a full disk, a folder that may not be written, too many open files
        where = f": {error.filename}" if error.filename else ""
        errors.print(Text("error: ", style="bold red") + Text(f"the system says: {error.strerror or error}{where}"))
        errors.print(Text("OUT.onnx is as it was, or whole and checked. If nothing is wrong there, please report it with the "
                          "output of the same command after 'export SLIM_MODEL_DEBUG=1'."))  # fmt: skip
        return 2
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        errors.print(Text("error: ", style="bold red") + Text("there is not enough memory for this model here. "
                          "Give smaller inputs, or --batch 1 where there is --data."))  # fmt: skip
        return 2
    errors.print(Text("error: ", style="bold red") + Text(f"slim-model failed: {first_line(error, named=True)}"))
    errors.print(Text("This is a fault of slim-model. OUT.onnx is as it was, or whole and checked. Please report it with "
                      "the output of the same command after 'export SLIM_MODEL_DEBUG=1'."))  # fmt: skip
    return 1
