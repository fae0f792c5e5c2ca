"""The result of a walk: which label sits where, which are one channel, and what was fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.graph.stored_tensors import Constants
from slim_model.labels.values import Axis, Birth, Pin


class Tie(NamedTuple):
    """Labels at the same position of ``left`` and ``right`` are one channel, because of ``node``."""

    left: Tensor
    right: Tensor
    node: fx.Node


class Made(NamedTuple):
    """The layer at ``node`` gives ``labels`` to its output."""

    labels: Tensor
    node: fx.Node


class Pieces(NamedTuple):
    """The ``labels`` of each piece into which ``node`` splits an axis."""

    labels: tuple[Axis, ...]
    node: fx.Node


class Terms(NamedTuple):
    """The axis that is ``made`` has equally many terms of each of ``inputs``, those of one in a row: a position of it
    stays where its term does, and its input. ``held``: the labels of all axes that hold them."""

    inputs: Tensor
    made: Tensor
    held: list[Tensor]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A graph with its labels, which are ``0 .. labels - 1``; label 0 (``FIXED``) is a position that can never go.

    ``values``: of each node a ``Value``, a list of them, or what the node gives that is no tensor. ``births``:
    where labels begin. ``shared``: names of tensors that have the labels of another name, each with that name.
    ``read``: labels along axes that a layer sums over. ``made``: labels that layers give to their outputs.
    ``pieces``: for each axis that is split, the labels of its pieces. ``whole_blocks``: where a grouped layer loses
    whole groups, one label of each. ``terms``: axes of which a position goes with either of two channels.
    ``unknown``: nodes whose operator has no rule. ``choices``: what was decided at each node, by its name, in turn;
    a walk over the small graph repeats it. ``pinned_nodes``: nodes at which everything is fixed, and why.
    ``constants``: values that follow from stored tensors alone.
    """

    graph: Graph
    labels: int
    values: Mapping[fx.Node, Any]
    births: Sequence[Birth]
    births_by_owner: Mapping[str, Sequence[Birth]]
    shared: Mapping[str, str]
    ties: Sequence[Tie]
    pins: Sequence[Pin]
    read: Sequence[Tensor]
    made: Sequence[Made]
    pieces: Sequence[Pieces]
    whole_blocks: Sequence[Made]
    terms: Sequence[Terms]
    unknown: Sequence[fx.Node]
    choices: Mapping[str, Sequence[Any]]
    pinned_nodes: Mapping[str, str]
    constants: Constants

    def births_of(self, owner: str) -> Sequence[Birth]:
        """Where labels of this stored tensor begin, for each of its axes; shared tensors have one set."""
        return self.births_by_owner.get(self.shared.get(owner, owner), ())

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments of ``node`` by their names in the operator's schema, with Values in place of nodes."""
        return {name: fx.map_arg(arg, self.values.__getitem__) for name, arg in arguments_of(node).items()}
