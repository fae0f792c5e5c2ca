"""What is being done, while it is done: a spinner on a terminal, one line a stage elsewhere; and in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.text import Text

from slim_model import distributed
from slim_model.cli.streams import Screen, harmless
from slim_model.commands.outputs import followed
from slim_model.errors import InputError, SlimError
from slim_model.options import check_choices, option
from slim_model.progress import Progress
from slim_model.strict_json import strict_json

FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """``quiet``: nothing is printed but errors. ``log_file`` gets what is told of the run, in ``log_format``: lines of
    text, or one JSON object a line with ``event``, ``time`` (UTC) and ``seconds`` since the start."""

    quiet: bool = option(False, "Print nothing but errors.", negatable=False)
    log_file: Path | None = option(None, "Also write there what is being done.", kind=Path, metavar="F")
    log_format: str = option("text", "json: one event a line, in the log and on the screen.", choices=FORMATS)

    def __post_init__(self) -> None:
        check_choices(self)

    def keep_apart(self, *others: Path) -> None:
        """Raise InputError where the log would be written over one of ``others``."""
        if self.log_file and followed(self.log_file) in map(followed, others):
            raise InputError(f"--log-file {self.log_file} is a file that the run reads or writes. Give another name.")


class status:
    """Says each stage as it begins. Of several processes the first."""

    def __init__(self, options: LogOptions = LogOptions()) -> None:
        self.options = options
        self.errors = Screen(file=sys.stderr)  # the stream of now: stages silence what PyTorch prints there
        in_text = options.log_format == "text" and not options.quiet
        self.spinner = self.errors.status("starting") if self.errors.is_terminal and in_text else None
        self.log: TextIO | None = None

    def __enter__(self) -> Progress:
        self.started = time.perf_counter()
        if self.options.log_file and distributed.rank() == 0:
            try:
                self.log = self.options.log_file.open("w", encoding="utf-8", buffering=1)
            except OSError as error:
                raise InputError(f"cannot write the log {self.options.log_file}: {error.strerror}.") from error
        if self.spinner:
            self.spinner.start()
        return self._say

    def _say(self, stage: str) -> None:
        self._tell("stage", stage, {"stage": stage})

    def result(self, text: str, **figures: Any) -> None:
        """Log how the run ended: ``text`` for people, ``figures`` for machines."""
        self._tell("result", text, figures, on_screen=self.options.log_format == "json")

    def _tell(self, event: str, text: str, more: Mapping[str, Any], *, on_screen: bool = True) -> None:
        if distributed.rank() > 0:
            return
        seconds = round(time.perf_counter() - self.started, 3)
        if self.options.log_format == "json":
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = strict_json({"event": event, "time": now, "seconds": seconds} | dict(more), indent=None).rstrip()
        else:
            line = harmless(f"[{seconds:5.1f} s] {text}")
        if self.log:
            self._write(line)
        if self.options.quiet or not on_screen:
            return
        if self.spinner:
            self.spinner.update(text)
        else:
            self.errors.print(Text(line, style="dim"), soft_wrap=self.options.log_format == "json")

    def _write(self, line: str) -> None:
        """A log that takes no more, on a disk that is full, ends no run."""
        assert self.log
        try:
            self.log.write(line + "\n")
        except OSError as error:
            self.log, place = None, self.options.log_file
            self._say(f"the log {place} is written no more: {error.strerror}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if self.spinner:
            self.spinner.stop()
        if error:
            code = error.exit_code if isinstance(error, SlimError) else 1
            text = str(error) or type(error).__name__
            self._tell("error", f"error: {text}", {"message": text, "exit_code": code}, on_screen=False)
        if self.log:
            self.log.close()
