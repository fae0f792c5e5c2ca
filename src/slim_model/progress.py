"""How long work says what it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with a line of text when a stage, or a part of a long one, begins."""

Count = Callable[[int, int], None]
"""Called with how many of how many are done."""


def say_nothing(stage: str) -> None:
    """The Progress of those who do not want to hear."""


def count_nothing(done: int, total: int) -> None:
    """The Count of those who do not want to hear."""


def count_in_text(progress: Progress, stage: str, *, every_s: float = 2.0) -> Count:
    """Counts of a ``stage`` as a bar of text with the time that is left, at most one in ``every_s`` seconds."""
    started = last = time.perf_counter()

    def count(done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= every_s:
            last = now
            filled = 20 * min(done, total) // max(total, 1)
            left = f", {(now - started) * (total - done) / done:.0f} s left" if 0 < done < total else ""
            progress(f"{stage} [{'=' * filled}{' ' * (20 - filled)}] {done} of {total}{left}")

    return count
