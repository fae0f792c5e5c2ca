"""Where the command prints: a stream that is closed, or a device that is full, never decides how a command ends, and
what is printed steers no terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, begin an order to the terminal, or turn the text around."""


class Forgiving:
    """A text stream that goes on where its place takes nothing any more; ``lost`` is then why."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            self.lost = self.lost or error
            _to_nowhere(self.stream)
        except ValueError:  # it was closed
            self.lost = self.lost or OSError(errno.EBADF, os.strerror(errno.EBADF))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def harmless(text: str) -> str:
    """``text`` with the characters that would steer a terminal written out.

    >>> harmless("layer\\x1b[2J")
    'layer\\\\x1b[2J'
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Screen(Console):
    """A console on which names are text: what a file calls its parts is no markup of rich's, and harmless."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Ahead of measuring, so that a table has room for it."""
        return super().render_str(harmless(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


def make_forgiving() -> None:
    """Standard input, output and errors exist and take what is printed, however this process was started."""
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # a closed one would become the next file that is opened, and what is printed would go there
        os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without '…' is no reason to fail
        setattr(sys, name, Forgiving(stream))


def lost_output() -> str | None:
    """Why what was printed as the result did not arrive; None where it did, or nobody listens any more."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "lost", None)
    return None if error is None or error.errno in (errno.EPIPE, errno.EBADF) else str(error.strerror)


def _to_nowhere(stream: Any) -> None:
    """What is still buffered must go somewhere, or Python complains when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
