"""What is written down while labels are carried through a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.stored_tensors import Constants
from slim_model.labels.labelled import Labelled, Made, Pieces, Terms, Tie
from slim_model.labels.values import Birth, Pin


@dataclass(slots=True)
class Record:
    """A ``Labelled`` that is being made: the same fields, which grow as nodes are visited."""

    graph: Graph
    pinned_nodes: dict[str, str]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    births: list[Birth] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    ties: list[Tie] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    pieces: list[Pieces] = field(default_factory=list)
    whole_blocks: list[Made] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    unknown: list[fx.Node] = field(default_factory=list)
    choices: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def labels(self) -> int:
        """How many labels there are, ``FIXED`` included; the next one to be born is of this number."""
        return self.births[-1].start + self.births[-1].size if self.births else 1

    def closed(self, constants: Constants) -> Labelled:
        """All that was written down, as a value."""
        births_by_owner: dict[str, tuple[Birth, ...]] = {}
        for birth in self.births:
            births_by_owner[birth.owner] = (*births_by_owner.get(birth.owner, ()), birth)
        return Labelled(
            graph=self.graph,
            labels=self.labels,
            values=MappingProxyType(self.values),
            births=tuple(self.births),
            births_by_owner=MappingProxyType(births_by_owner),
            shared=MappingProxyType(self.shared),
            ties=tuple(self.ties),
            pins=tuple(self.pins),
            read=tuple(self.read),
            made=tuple(self.made),
            pieces=tuple(self.pieces),
            whole_blocks=tuple(self.whole_blocks),
            terms=tuple(self.terms),
            unknown=tuple(self.unknown),
            choices=MappingProxyType({name: tuple(choices) for name, choices in self.choices.items()}),
            pinned_nodes=MappingProxyType(self.pinned_nodes),
            constants=constants,
        )
