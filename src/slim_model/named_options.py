"""The options of a function that a user names as ``NAME:option=value,...``: its keyword-only parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from slim_model.errors import InputError
from slim_model.late import Late


def known_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Each option of ``function`` and its default."""
    function = function.load() if isinstance(function, Late) else function
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def read_options(
    what: str, name: str, function: Callable[..., Any], text: str, choices: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The options in ``text``, as typed behind ``NAME:``, in the types of their defaults.

    ``what`` is what messages call the row (criterion, allocation); ``choices`` are the words that an option may be.
    Raises InputError where an option is unknown or its value is not like the default.
    """
    if not text:
        return {}
    known = known_options(function)
    chosen: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in known:
            has = f"its options are {', '.join(f'{k}={v}' for k, v in known.items())}" if known else "it has none"
            raise InputError(f"{what} '{name}' has no option '{key}': {has}. Write {name}:option=value.")
        try:
            chosen[key] = _read(value, known[key])
        except ValueError:
            raise InputError(f"{what} '{name}': {key}={value} is not like {key}={known[key]}.") from None
        if key in choices and chosen[key] not in choices[key]:
            words = f"{', '.join(choices[key][:-1])} or {choices[key][-1]}"
            raise InputError(f"{what} '{name}': {key}={value} is not {words}.")
    return chosen


def _read(text: str, like: Any) -> Any:
    """``text`` as a value of the type of ``like``; ValueError where it is none."""
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    return type(like)(text)
