"""JSON that every reader takes: Python itself writes ``NaN`` and ``Infinity``, which are none (RFC 8259, section 6)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(values: Mapping[str, Any], *, indent: int | None = 1) -> str:
    """``values`` as text that ends its line; a number that is not finite is null. Without ``indent`` it is one line."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
