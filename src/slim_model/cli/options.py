"""What the commands share: the panels of their help, the reading of options, the spinner."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal, cast

import torch
from rich.console import Console
from rich.text import Text

from slim_model import distributed
from slim_model.errors import InputError
from slim_model.progress import Progress

ACROSS = "Model in, model out"
CHOICE = "What is removed"
DATA = "Data to rank by, and to recover with"
TRAIN = "Training afterwards"
MEASURE = "Measuring and reporting"


def counts(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{option} {text}: it is one number or several with commas between, such as 1,8,64.") from None


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{option} {text}: it is one number or one per channel, such as 0.485,0.456,0.406.") from None


def device_of(text: str) -> Literal["cpu", "cuda"]:
    if text not in ("cpu", "cuda"):
        raise InputError(f"--device {text}: it is 'cpu' or 'cuda'.")
    if text == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device here. Leave the option out to measure on the CPU.")
    return cast(Literal["cpu", "cuda"], text)


class status:
    """Says what is being done: a spinner on a terminal, one line a stage elsewhere. Of several processes the first."""

    def __init__(self, console: Console) -> None:
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
