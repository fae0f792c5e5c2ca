"""Options: fields of frozen dataclasses, one group a stage, that say themselves what the user may give.

The command line, the Python call and the report all derive from these fields, so that a name, a default, a choice or a
help text stands once. Nothing here imports PyTorch: ``slim-model --help`` reads these groups alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from slim_model.errors import InputError

T = TypeVar("T")
_KEY = "option"
Move = Callable[[str], str]
"""A path as it stands in a text -> as it shall stand there."""


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What is known of an option beside its name and default.

    ``kind``: the type of one value on the command line. ``many``: it may be repeated, and is a tuple. ``choices``: the
    values it may have. ``read``: what turns the text that was typed into the value, for values that are no plain
    ``kind``. ``basic``: it is among the few that ``--help`` shows. ``move``: ``(text, how)`` -> the text with the path
    inside it changed by ``how``, for values in which a path stands beside other words.
    """

    help: str
    kind: type
    flag: str | None = None
    metavar: str | None = None
    many: bool = False
    choices: Collection[str] = ()
    least: int | None = None
    most: int | None = None
    read: Callable[[str, str], Any] | None = None
    basic: bool = False
    negatable: bool = True
    move: Callable[[str, Move], str] | None = None


def option(
    default: Any,
    help: str,
    *,
    kind: type | None = None,
    flag: str | None = None,
    metavar: str | None = None,
    many: bool = False,
    choices: Collection[str] = (),
    least: int | None = None,
    most: int | None = None,
    read: Callable[[str, str], Any] | None = None,
    basic: bool = False,
    negatable: bool = True,
    move: Callable[[str, Move], str] | None = None,
) -> Any:
    """A dataclass field that the command line has as an option. ``kind`` defaults to the type of ``default``."""
    kind = kind or (str if default is None or many or read else type(default))
    shown = metavar or ("|".join(choices) if choices else None)
    about = About(help, kind, flag, shown, many, choices, least, most, read, basic, negatable, move)
    return dataclasses.field(default=default, metadata={_KEY: about})


def options_of(group: type) -> Iterator[tuple[dataclasses.Field[Any], About]]:
    """The fields of ``group`` that are options, in their order; fields for Python alone are left out."""
    for field in dataclasses.fields(group):
        if _KEY in field.metadata:
            yield field, field.metadata[_KEY]


def files_of(group: Any) -> Iterator[Path]:
    """The files and folders that the options of ``group`` name, also beside other words: ``file.py:callable``."""
    for field, about in options_of(type(group)):
        value = getattr(group, field.name)
        if isinstance(value, Path):
            yield value
        elif about.move and isinstance(value, str):
            yield from _files_in(value, about.move)


def _files_in(text: str, move: Callable[[str, Move], str]) -> list[Path]:
    named = []

    def stays(path: str) -> str:
        named.append(Path(path))
        return path

    move(text, stays)
    return named


def check_choices(group: Any) -> None:
    """Raise InputError where an option of ``group`` has a value that is none of its choices. None, where it is the
    default, is left to its stage."""
    for field, about in options_of(type(group)):
        value = getattr(group, field.name)
        if about.choices and value not in about.choices and not (value is None and field.default is None):
            raise InputError(f"{field.name} '{value}' is unknown; it is one of {', '.join(about.choices)}.")


def group_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """The group ``kind`` with those of ``values`` that are its fields. Raises InputError where one is wrong."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names})


def move_code(text: str, how: Move) -> str:
    """The path in ``file.py:callable`` changed by ``how``; names of packages and libraries are left."""
    path, colon, name = text.partition(":")
    return f"{how(path)}{colon}{name}" if path.endswith(".py") else text


# -- values that are typed in a form of their own -------------------------------------------------------------------


def read_numbers(flag: str, text: str) -> tuple[float, ...]:
    """``"0.485,0.456"`` -> ``(0.485, 0.456)``."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{flag} {text}: it is one number or one per channel, such as 0.485,0.456,0.406.") from None


def read_counts(flag: str, text: str) -> tuple[int, ...]:
    """``"1,8"`` -> ``(1, 8)``."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{flag} {text}: it is one number or several with commas between, such as 1,8,64.") from None


def read_step(flag: str, text: str) -> int | str:
    """``"auto"`` or a whole number."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{flag} {text}: it is 'auto' or a whole number, such as 8.") from None
