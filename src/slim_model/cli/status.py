"""What is being done, while it is done: a spinner on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text

from slim_model import distributed
from slim_model.progress import Progress


class status:
    """Says each stage as it begins. Of several processes the first."""

    def __init__(self) -> None:
        self.errors = Console(file=sys.stderr)  # the stream of now: stages silence what PyTorch prints there
        self.spinner = self.errors.status("starting") if self.errors.is_terminal else None

    def __enter__(self) -> Progress:
        self.started = time.perf_counter()
        if self.spinner:
            self.spinner.start()
        return self._say

    def _say(self, stage: str) -> None:
        if distributed.rank() > 0:
            return
        if self.spinner:
            self.spinner.update(stage)
        else:
            self.errors.print(Text(f"[{time.perf_counter() - self.started:5.1f} s] {stage}", style="dim"))

    def __exit__(self, *_: Any) -> None:
        if self.spinner:
            self.spinner.stop()
