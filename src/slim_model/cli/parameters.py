"""Option groups -> the parameters of a command. Nothing here imports PyTorch, so that ``--help`` answers at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer

from slim_model.options import About, options_of


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
    given_only: bool = False,
) -> Callable[..., None]:
    """``function`` as typer takes it: with its own parameters, and an option for each field of ``sections``.

    ``function`` is called with its own parameters and ``options``: what the user gave, as values of the fields by
    their names. ``basics_first``: options that are not basic are shown by ``--help-all`` alone.
    ``given_only``: ``options`` has those alone that the user gave, since the others stand elsewhere.
    """
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "options"]
    rows = [
        (section.title, field, about)
        for section in sections
        for field, about in options_of(section.group)
        if section.names is None or field.name in section.names
    ]

    @wraps(function)
    def command(**given: Any) -> None:
        options = {
            field.name: _value(field, about, typed)
            for _, field, about in rows
            if (typed := given.pop(field.name)) not in (None, []) or not given_only
        }
        given.pop("help_all", None)
        function(**given, options=options)

    made = [
        _parameter(title, field, about, hidden=basics_first and not about.basic, given_only=given_only)
        for title, field, about in rows
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
    if basics_first:
        parameters.append(_HELP_ALL)
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


def _parameter(title: str, field: Field[Any], about: About, *, hidden: bool, given_only: bool) -> inspect.Parameter:
    flag = flag_of(field, about)
    if about.kind is bool and about.negatable:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    typed: Any = list[str] if about.many else about.kind
    default = None if given_only or about.many or field.default in (None, ()) else field.default
    option = typer.Option(
        flag,
        help=about.help,
        metavar=about.metavar,
        min=about.least,
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
