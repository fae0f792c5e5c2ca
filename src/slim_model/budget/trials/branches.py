"""Residual branches that may go as a whole, and in which order.

Where all that a layer reads is one group, and what it gives enters a sum with a value that does not depend on it, the
model is still one when the group is gone: the block becomes its shortcut, plus a constant (depth pruning; MiR, Wang et
al., ECCV 2022, and PRACTISE, 2023, remove blocks so and fit the rest to the dense model). That takes all of the time
that the branch took, where narrower layers save little on machines whose kernels work on blocks of channels.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from torch import Tensor

from slim_model.budget.plan import without
from slim_model.coupling.coupling import Coupling, Group
from slim_model.cutting.silence import reading_weights, silence
from slim_model.data.holdout import Part, Parts
from slim_model.export.silent_layers import enters_sums
from slim_model.progress import Progress, say_nothing
from slim_model.recovery.affine import observe_inputs
from slim_model.recovery.gate_layers import GateLayer, find_layers
from slim_model.recovery.linear_layers import LinearLayer
from slim_model.recovery.referee import Referee
from slim_model.recovery.ridge import problem_of, solve_ridge

_JUDGED = 100
"""Samples on which a removal is judged."""
_NEAR = 1.2
"""Times the rate of the next one, as it was when fewer were gone, within which a branch is taken for the best."""


@dataclass(frozen=True, slots=True)
class Branch:
    """The numbers of the groups that go, the one that its last ``layers`` read first: ahead of it lie the ranks and
    widths that serve it alone."""

    groups: tuple[int, ...]
    layers: tuple[LinearLayer, ...]

    @property
    def read(self) -> int:
        """The number of the group that the last layers read."""
        return self.groups[0]


def find_branches(coupling: Coupling) -> list[Branch]:
    """Of every group that may go as a whole, in the order of the groups."""
    nodes = {node.name: node for node in coupling.graph.nodes}
    layers: dict[str, LinearLayer] = {
        layer.weight: layer
        for layer in find_layers(coupling.graph, coupling.graph, {})
        if not isinstance(layer, GateLayer) and len(layer.groups) == 1
    }

    def ends(name: str) -> bool:
        """The layer is the last one of a branch."""
        return name in layers and all(enters_sums(nodes[call.node]) for call in layers[name].calls)

    found = []
    for number, group in enumerate(coupling.groups):
        names = list(dict.fromkeys(reading_weights(coupling, [number])))
        if names and all(map(ends, names)) and all(_alone(group, name) for name in names):
            found.append(Branch((number, *_serving(coupling, number)), tuple(layers[name] for name in names)))
    return found


def _serving(coupling: Coupling, group: int) -> list[int]:
    """Groups that nothing needs once ``group`` is gone: what is read to make it alone, be it the widths of a branch of
    more than two layers, or the ranks of those that are factored."""
    gone, useless = {group}, set[str]()
    while True:
        # a layer is of no use when all that it makes has gone; a group when all that read it are of no use
        useless |= {
            s.parameter
            for number in gone
            for s in coupling.groups[number].slices
            if s.role == "makes" and bool((s.channel >= 0).all())
        }
        more = {
            number
            for number in range(len(coupling.groups))
            if number not in gone and (names := set(reading_weights(coupling, [number]))) and names <= useless
        }
        if not more:
            return sorted(gone - {group})
        gone |= more


def _alone(group: Group, name: str) -> bool:
    """The layer reads nothing but the group."""
    return all(bool((s.channel >= 0).all()) for s in group.slices if s.parameter == name and s.role == "reads")


class BranchJudge:
    """What the outputs lose without some branches, where each layer gives what it gave on average."""

    def __init__(self, coupling: Coupling, branches: list[Branch], fit: Parts, held_out: Parts) -> None:
        self.coupling = coupling
        self.referee = Referee(coupling.graph, first_of(held_out, _JUDGED))
        self.constants = dict[int, dict[str, Tensor]]()
        graph, few = coupling.graph, first_of(fit, _JUDGED)
        problems = {b.read: [problem_of(graph, layer, _JUDGED).silent() for layer in b.layers] for b in branches}
        moments = observe_inputs(graph, [problem for own in problems.values() for problem in own], few)
        for group, own in problems.items():
            values = dict(silence(graph, coupling, [group]).tensors)
            for problem in own:
                solve_ridge(problem, moments[problem.key], None).store(values)
            self.constants[group] = {n: x for n, x in values.items() if x is not graph.tensors[n]}

    def error(self, branches: list[Branch]) -> float:
        """Of the dense model without these branches, relative to the outputs' spread."""
        tensors = dict(self.coupling.graph.tensors)
        for branch in branches:
            tensors |= self.constants[branch.read]
        return self.referee.error(self.coupling.graph.with_tensors(tensors))


def order_of_branches(
    coupling: Coupling,
    fit: Parts,
    held_out: Parts,
    price_of: Callable[[np.ndarray], float],
    least: float,
    progress: Progress = say_nothing,
) -> list[Branch]:
    """Those that go one after the other, until the price is no more than ``least``: whichever adds least to the error
    of the outputs for the price that it saves, given all that went before.

    What a branch costs rarely falls when others go, so that it is measured anew only where it seems to be the best
    (lazy evaluation, Minoux 1978), and near enough to the next is good enough. Those without which the outputs say
    nothing any more stay.
    """
    branches = find_branches(coupling)
    if not branches:
        return []
    judge, whole, told = BranchJudge(coupling, branches, fit, held_out), coupling.keep_all(), count(1)
    gone: list[Branch] = []
    now, price = 0.0, price_of(whole)
    queue = [(-np.inf, place, 0.0, -1) for place in range(len(branches))]
    while queue and price > least:
        _, place, error, known = heapq.heappop(queue)
        after = [*gone, branches[place]]
        if known < len(gone):
            progress(f"judging branches: {next(told)} ({coupling.groups[branches[place].read].name})")
            error, known = judge.error(after), len(gone)
            saved = price - price_of(without(coupling, whole, groups_of(after)))
            rate = (error - now) / saved if error < 1 and saved > 0 else np.inf
            if rate == np.inf:
                continue
            if queue and rate > _NEAR * max(queue[0][0], 0.0):
                heapq.heappush(queue, (rate, place, error, known))
                continue
        gone = after
        now, price = error, price_of(without(coupling, whole, groups_of(gone)))
    return gone


def groups_of(branches: Sequence[Branch]) -> tuple[int, ...]:
    """The numbers of all that goes with them."""
    return tuple(dict.fromkeys(group for branch in branches for group in branch.groups))


def first_of(parts: Parts, most: int) -> Parts:
    """The first parts, until there are ``most`` samples or a few more."""

    def some() -> Iterator[Part]:
        seen = 0
        for part in parts():
            yield part
            seen += part.samples
            if seen >= most:
                return

    return some
