"""``slim-model explain IN``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from slim_model.cli.parameters import Section, command_of
from slim_model.cli.printed import PRINTED
from slim_model.cli.status import LogOptions, status
from slim_model.cli.streams import harmless
from slim_model.coupling.options import CouplingOptions
from slim_model.graph.options import TracingOptions
from slim_model.loading.file_form import first_look
from slim_model.loading.source import Source, SourceOptions
from slim_model.options import group_of

_IN, _SHOW = "Model in", "What is shown"


def explain_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A model, as for slim-model IN OUT.onnx.")],
    options: dict[str, Any],
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Only what touches these layers: a name, its beginning (layer3) or a glob.", rich_help_panel=_SHOW)] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="F", help="Everything, for machines.", rich_help_panel=_SHOW)] = None,
    as_dot: Annotated[Path | None, typer.Option("--dot", metavar="F", help="The coupling as graphviz text.", rich_help_panel=_SHOW)] = None,
    as_svg: Annotated[Path | None, typer.Option("--svg", metavar="F", help="The coupling as a picture.", rich_help_panel=_SHOW)] = None,
) -> None:  # fmt: skip
    """Say which channels go together and why, what cannot go, and what would free it. Nothing is removed."""
    first_look(source, trusted=options["trust_pickle"])
    from slim_model.commands.explain import Question, answer
    from slim_model.commands.outputs import publish
    from slim_model.reporting import explanation as drawing

    question = Question(
        source=Source(source, group_of(SourceOptions, options)),
        keep=options["keep"],
        tracing=group_of(TracingOptions, options),
    )
    forms = ((as_json, drawing.json_text), (as_dot, drawing.dot), (as_svg, drawing.svg))
    drawn = [(place, render) for place, render in forms if place]
    logging = group_of(LogOptions, options)
    logging.keep_apart(source, *(place for place, _ in drawn))
    with status(logging) as progress:
        explanation = answer(question, [place for place, _ in drawn], progress)
    shown = explanation.about(layer) if layer else explanation
    for place, render in drawn:
        publish(place, render(shown))
    if not logging.quiet:
        sys.stdout.write(harmless(drawing.text(shown)) + "\n")


command = command_of(
    explain_command,
    [
        Section("What is removed", CouplingOptions, ["keep"]),
        Section(_IN, SourceOptions),
        Section(_IN, TracingOptions),
        PRINTED,
    ],
)
