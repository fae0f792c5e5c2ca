"""What opening a file may take: its architecture, its inputs, and whether it is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Loading:
    """What ``load`` may need to know of a PyTorch file, and ``inputs`` as typed after ``--input``."""

    inputs: tuple[str, ...] = ()
    arch: str | None = None
    trust_pickle: bool = False
    code: Path | None = None
