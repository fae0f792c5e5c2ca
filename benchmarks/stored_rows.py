"""Results as they are committed: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Those of the file at ``path``; none where there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def save_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write ``rows``, in their order, in place of what the file holds."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
