"""``slim-model explain IN``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slim_model.cli.options import CHOICE, status

_IN = "Model in"
_SHOW = "What is shown"


def explain_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A model, as for slim-model IN OUT.onnx.")],
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Only what touches these layers: a name, its beginning (layer3) or a glob.", rich_help_panel=_SHOW)] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="F", help="Everything, for machines.", rich_help_panel=_SHOW)] = None,
    as_dot: Annotated[Path | None, typer.Option("--dot", metavar="F", help="The coupling as graphviz text.", rich_help_panel=_SHOW)] = None,
    as_svg: Annotated[Path | None, typer.Option("--svg", metavar="F", help="The coupling as a picture.", rich_help_panel=_SHOW)] = None,
    keep: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="As if these layers were left alone (repeat).", rich_help_panel=CHOICE)] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict.", rich_help_panel=_IN)] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Example input, where it cannot be known (one per input).", rich_help_panel=_IN)] = None,
    static_batch: Annotated[bool, typer.Option("--static-batch", help="Fix the batch size at that of --input.", rich_help_panel=_IN)] = False,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside IN. Only for files you made.", rich_help_panel=_IN)] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.", rich_help_panel=_IN)] = None,
) -> None:  # fmt: skip
    """Say which channels go together and why, what cannot go, and what would free it. Nothing is removed."""
    from slim_model.commands.explain import Question, answer
    from slim_model.commands.outputs import publish
    from slim_model.reporting import explanation as drawing

    question = Question(source, tuple(keep or ()), arch, tuple(inputs or ()), static_batch, trust_pickle, code)
    drawn = [
        (place, render)
        for place, render in ((as_json, drawing.json_text), (as_dot, drawing.dot), (as_svg, drawing.svg))
        if place
    ]
    with status(Console()) as progress:
        explanation = answer(question, [place for place, _ in drawn], progress)
    shown = explanation.about(layer) if layer else explanation
    for place, render in drawn:
        publish(place, render(shown))
    sys.stdout.write(drawing.text(shown) + "\n")
