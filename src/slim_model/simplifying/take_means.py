"""What the forward draws at random -> the mean of what is drawn, where the user asks for that (``--random mean``)."""

from __future__ import annotations

import dataclasses

from torch import fx

from slim_model.calling.draws import draws, mean_of
from slim_model.errors import InputError
from slim_model.graph.graph import Graph, source_line
from slim_model.graph.nodes import arguments_of
from slim_model.graph.promises import whole


def take_means(graph: Graph) -> Graph:
    """A copy of ``graph`` with the mean in the place of each draw, and a note that says so; the model's own class, too,
    is then called with means. ``graph`` itself where nothing is drawn.

    Raises InputError where what is drawn has no mean, or where the graph has decisions of one run.
    """
    if not (drawn := drawn_in(graph)):
        return graph
    if graph.decisions:
        raise InputError(
            "random 'mean': the model also makes decisions from its values, and means are not followed through these. "
            "Leave what it draws out in eval mode."
        )
    said = list(dict.fromkeys(f"{node.target} at {source_line(node) or node.name}" for node in drawn))
    graph = graph.copy()
    for node in drawn_in(graph):
        if (call := mean_of(node.target, arguments_of(node))) is None:
            raise InputError(f"random 'mean': {without_mean(node)}")
        node.target, node.args, node.kwargs = call.target, call.args, dict(call.kwargs)
    graph.module.recompile()
    note = (
        f"of what the model draws at random ({'; '.join(said)}) the mean is taken, in the proof and in the files that "
        "are written; a PyTorch module of its own class draws as before"
    )
    return whole(dataclasses.replace(graph, in_means=True, warnings=(*graph.warnings, note)), "take_means")


def drawn_in(graph: Graph) -> list[fx.Node]:
    """The nodes that draw random numbers."""
    return [node for node in graph.nodes if node.op == "call_function" and draws(node.target, arguments_of(node))]


def remedy_for_draw(node: fx.Node) -> str:
    """What to do about a ``node`` that draws, where outputs are to be compared."""
    if mean_of(node.target, arguments_of(node)) is None:
        return without_mean(node)
    return (
        f"{node.target} draws random numbers at {source_line(node) or node.name}: leave it out in eval mode, or take "
        "the mean of what it draws: --random 'mean'."
    )


def without_mean(node: fx.Node) -> str:
    """The sentence that says so of ``node``, and what to do."""
    return (
        f"{node.target} draws numbers that have no mean at {source_line(node) or node.name}. Return what they are "
        "drawn from (the probabilities), or leave it out in eval mode."
    )
