"""What a committed number was measured on, when, and at which commit."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import Any

from slim_model.measuring.machine import environment
from slim_model.measuring.peak_memory import peak_bytes

__all__ = ["RESULTS", "ROOT", "peak_bytes", "provenance", "summary"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def provenance() -> dict[str, Any]:
    """The commit (``modified`` where src or benchmarks differ from it), the date in UTC, and the environment."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--", "src", "benchmarks/*.py")),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "environment": environment(),
    }


def summary(found: dict[str, Any]) -> str:
    """One line of a ``provenance`` for the foot of a table."""
    place = found["environment"]
    return (
        f"{place['cpu']} ({place['instruction_set']}, {place['logical_cores']} logical cores), {place['os']}, "
        f"Python {place['python']}, torch {place['torch']}, onnx {place['onnx']}, onnxruntime {place['onnxruntime']}; "
        f"commit {found['commit']}{' with changes' if found['modified'] else ''}, {found['date'][:10]}"
    )


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()
