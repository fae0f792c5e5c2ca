"""Option groups -> the parameters of a command. Nothing here imports PyTorch, so that ``--help`` answers at once."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer

from slim_model.errors import InputError
from slim_model.options import About, options_of


class Style(enum.Enum):
    """What a command is told of its options."""

    EVERY = "each option, with its default"
    GIVEN = "those that the user gave, since the others stand elsewhere"
    SEVERAL = "those that the user gave, each as a tuple of values"


class Section(NamedTuple):
    """Options of one group, under one title in the help. ``names``: these alone; None: all."""

    title: str
    group: Any
    names: Sequence[str] | None = None


def command_of(
    function: Callable[..., None],
    sections: Sequence[Section],
    *,
    basics_first: bool = False,
    style: Style = Style.EVERY,
) -> Callable[..., None]:
    """``function`` as typer takes it: with its own parameters, and an option for each field of ``sections``.

    ``function`` is called with its own parameters and ``options``: what the user gave, as values of the fields by
    their names, which of them says ``style``. ``basics_first``: options that are not basic are shown by
    ``--help-all`` alone.
    """
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "options"]
    rows = [
        (section.title, field, about)
        for section in sections
        for field, about in options_of(section.group)
        if section.names is None or field.name in section.names
    ]

    # Called with what the user typed: the fields of options are taken out, the rest is the function's own.
    @wraps(function)
    def command(**given: Any) -> None:
        options = {
            field.name: _values(field, about, typed) if style is Style.SEVERAL else _value(field, about, typed)
            for _, field, about in rows
            if (typed := given.pop(field.name)) not in (None, []) or style is Style.EVERY
        }
        given.pop("help_all", None)
        function(**given, options=options)

    made = [
        _parameter(title, field, about, hidden=basics_first and not about.basic, style=style)
        for title, field, about in rows
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
    if basics_first:
        parameters.append(_HELP_ALL)
    # Typer reads names, types and help texts from here.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def flag_of(field: Field[Any], about: About) -> str:
    """``--test-samples`` for ``test_samples``."""
    return about.flag or f"--{field.name.replace('_', '-')}"


def _value(field: Field[Any], about: About, given: Any) -> Any:
    """What was typed, as a value of the field."""
    if about.many:
        return tuple(given or ())
    if about.read and isinstance(given, str):
        return about.read(flag_of(field, about), given)
    return field.default if given is None else given


def _values(field: Field[Any], about: About, given: Any) -> tuple[Any, ...]:
    """The values typed as ``0.3,0.5``; where the option was repeated, each is taken whole."""
    if about.kind is bool:
        return (given,)
    texts = given[0].split(",") if len(given) == 1 else given
    return tuple(_one(field, about, text) for text in texts)


def _one(field: Field[Any], about: About, text: str) -> Any:
    if about.many:
        return (text,)
    if about.read:
        return about.read(flag_of(field, about), text)
    try:
        return about.kind(text)
    except ValueError:
        raise InputError(f"{flag_of(field, about)} {text}: it is no number. Give several as 0.3,0.5.") from None


def _parameter(title: str, field: Field[Any], about: About, *, hidden: bool, style: Style) -> inspect.Parameter:
    flag = flag_of(field, about)
    if about.kind is bool and about.negatable:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    listed = about.many or (style is Style.SEVERAL and about.kind is not bool)
    typed: Any = list[str] if listed else about.kind
    default = None if style is not Style.EVERY or about.many or field.default in (None, ()) else field.default
    option = typer.Option(
        flag,
        help=about.help,
        metavar=about.metavar,
        min=None if listed else about.least,
        max=None if listed else about.most,
        rich_help_panel=title,
        hidden=hidden,
    )
    annotation: Any = Annotated[typed | None if default is None else typed, option]  # type: ignore[valid-type]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _show_everything(context: typer.Context, wanted: bool) -> None:
    """The help with every option, and the end of the command."""
    if not wanted:
        return
    for parameter in context.command.params:
        parameter.hidden = False  # type: ignore[attr-defined]
    typer.echo(context.get_help())
    raise typer.Exit


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option("--help-all", help="Show every option and exit.", is_eager=True, callback=_show_everything),
    ],
)
