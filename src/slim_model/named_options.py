"""The options of a function that a user names as ``NAME:option=value,...``: its keyword-only parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def known_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Each option and its default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def read_option(text: str, like: Any) -> Any:
    """``text`` as a value of the type of ``like``; ValueError where it is none."""
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    return type(like)(text)
