"""Groups that nothing reads any more: a residual block of which all channels are gone is its shortcut.

No layer can be without channels, so that one is left of the group, and those that read it do so with weights of zero:
they give a constant. Where the file is written such layers are left out (``export.silent_layers``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from slim_model.coupling.coupling import Coupling
from slim_model.graph.graph import Graph


def reading_weights(coupling: Coupling, groups: Sequence[int]) -> Iterator[str]:
    """The stored tensors by which these groups are read."""
    for number in groups:
        yield from (s.parameter for s in coupling.groups[number].slices if s.role == "reads")


def silence(graph: Graph, coupling: Coupling, groups: Sequence[int]) -> Graph:
    """``graph``, dense or small, in which these groups are read with weights of zero. Only values change."""
    zero = {name: torch.zeros_like(graph.tensors[name]) for name in reading_weights(coupling, groups)}
    return graph.with_tensors(graph.tensors | zero)
