"""Affine recovery: removed channels are predicted from kept ones, and the prediction is folded into their readers.

With ``x`` what a layer reads, of mean ``m`` and covariance ``S``, the removed inputs P are predicted from the kept K by
ridge regression, ``x_P = A x_K + b`` with ``A = S_PK (S_KK + l I)^-1``, and ``W' = W_K + W_P A`` reads the kept alone:
one ``A`` for all taps of a kernel (Polyak, Wolf 2015). ``b`` goes into the layer's constant, such that the mean of
its outputs stays what it was, borders and all. With ``A = 0`` this is mean replacement (Evci et al. 2019). Each layer
takes, of nothing, the constant alone and several ``l``, what has the smallest error on samples that are held out.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.data.holdout import Parts
from slim_model.graph.graph import Graph
from slim_model.ranking.evidence.sampling import SAMPLED, sample_positions
from slim_model.recovery.gate_layers import GateLayer, find_layers, note, trail_of
from slim_model.recovery.linear_layers import LinearLayer, as_map
from slim_model.recovery.ridge import InputMoments, RidgeProblem, RidgeSolution, problem_of, solve_ridge

RIDGES = (1e-6, 1e-4, 1e-2)
"""Relative to the mean of the diagonal."""
STEADY = (1e-3, 1e-2, 1e-1)
"""Ridges that are tried for all recurrent layers at once."""
_MEMORY = 1 << 30
Memory = dict[Hashable, tuple[InputMoments | None, InputMoments | None]]
"""What was observed at a layer, by ``Problem.key``: on what is fitted, and on what is held out."""


def fold(
    dense: Graph,
    small: Graph,
    layers: list[LinearLayer],
    fit: Parts,
    held_out: Parts,
    *,
    ridges: tuple[float, ...] = RIDGES,
    gate_ridges: tuple[float, ...] | None = None,
    memory: Memory | None = None,
) -> tuple[Graph, dict[str, str]]:
    """The small graph with what was removed folded into its readers, and for each layer what it took.

    Without ``ridges``, constants alone; ``gate_ridges``: those of recurrent layers, if others. Statistics are those of
    the dense graph, gathered in one pass, or in several where those of all layers take more than a gigabyte. ``memory``
    has those that were gathered before.
    """
    tensors, took = dict(small.tensors), dict[str, str]()
    samples = sum(part.samples for part in fit())
    problems = [problem_of(dense, layer, samples) for layer in layers if layer.cut and layer.inputs.numel()]
    # Products of all inputs of a layer are large: as many layers at once as a gigabyte holds.
    for some in _chunks(problems):
        seen = Memory() if memory is None else memory
        _remember(dense, [problem for problem in some if problem.key not in seen], fit, held_out, seen)
        for problem in some:
            here, other = seen[problem.key]
            own = ridges if gate_ridges is None or not isinstance(problem.layer, GateLayer) else gate_ridges
            if problem.layer.silent_in(small):  # it stays so, but for what it gave on average
                problem, own = problem.silent(), ()
            note(took, problem.layer, _folded(problem, here, other, own, tensors))
    return small.with_tensors(tensors), took


def fold_steady(
    dense: Graph, small: Graph, layers: list[LinearLayer], fit: Parts, held_out: Parts, judge: Callable[[Graph], float]
) -> tuple[Graph, dict[str, str]]:
    """As ``fold``. What a step of a recurrent layer has wrong comes back at the next one, which no single step shows:
    the ridge that its layers take at least is the one with which ``judge`` finds the smallest error of a whole run."""
    if not any(isinstance(layer, GateLayer) and layer.cut for layer in layers):
        return fold(dense, small, layers, fit, held_out)
    memory = Memory()
    gate_ridges = (RIDGES, *((ridge,) for ridge in STEADY))
    folds = [fold(dense, small, layers, fit, held_out, gate_ridges=own, memory=memory) for own in gate_ridges]
    return min(folds, key=lambda folded: judge(folded[0]))


def _remember(dense: Graph, problems: list[RidgeProblem], fit: Parts, held_out: Parts, seen: Memory) -> None:
    if problems:
        one, two = (observe_inputs(dense, problems, part) for part in (fit, held_out))
        seen |= {problem.key: (one.get(problem.key), two.get(problem.key)) for problem in problems}


def bytes_needed(dense: Graph, fit: Parts, held_out: Parts) -> Memory:
    """What any plan may ask for, gathered at once; of layers with more inputs than samples tell, when they ask."""
    seen, samples = Memory(), sum(part.samples for part in fit())
    problems = [problem_of(dense, layer, samples) for layer in find_layers(dense, dense, {})]
    for some in _chunks([problem for problem in problems if problem.tied == 1]):
        _remember(dense, some, fit, held_out, seen)
    return seen


def _chunks(problems: list[RidgeProblem]) -> Iterator[list[RidgeProblem]]:
    """As many at once as their statistics fit the memory."""
    number, size, of = 0, 0, []
    for problem in problems:
        more = 2 * 8 * len(problem.layer.groups) * len(problem.kept) ** 2
        number, size = (number + 1, more) if size + more > _MEMORY else (number, size + more)
        of.append(number)
    for _, some in itertools.groupby(zip(of, problems, strict=True), key=lambda pair: pair[0]):
        yield [problem for _, problem in some]


def observe_inputs(graph: Graph, problems: list[RidgeProblem], parts: Parts) -> dict[Hashable, InputMoments]:
    """Moments of what each layer reads at all its calls, by the problem's key."""
    moments: dict[Hashable, InputMoments] = {}
    for part in parts():
        watch = _Watch(graph, problems, part.first)
        with torch.no_grad():
            watch.run(initial_env=graph.bind(part.inputs))
        for key, here in watch.moments.items():
            moments[key] = moments[key].merge(here) if key in moments else here
    return moments


class _Watch(fx.Interpreter):
    def __init__(self, graph: Graph, problems: list[RidgeProblem], first: int) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self.due = defaultdict[str, list[tuple[RidgeProblem, str]]](list)
        for problem in problems:
            for call in problem.layer.calls:
                self.due[call.node].append((problem, call.operand))
        self.first, self.moments = first, dict[Hashable, InputMoments]()

    def run_node(self, n: fx.Node) -> Any:
        for problem, operand in self.due.get(n.name, ()):
            if isinstance(problem.layer, GateLayer):
                here = self._of_gates(problem.layer, n)
            else:
                here = self._of(problem, next(self.env[m] for m in n.all_input_nodes if m.name == operand).detach())
            self.moments[problem.key] = self.moments[problem.key].merge(here) if problem.key in self.moments else here
        return super().run_node(n)

    def _of(self, problem: RidgeProblem, x: Tensor) -> InputMoments:
        layer = problem.layer
        if layer.window is None:
            rows = x.reshape(-1, x.shape[-1])
            return InputMoments.of(
                rows.unflatten(1, (-1, problem.tied)).transpose(1, 2).flatten(0, 1)[None], rows, len(rows)
            )
        flat = as_map(x).flatten(2)
        at = sample_positions(self.first, len(flat), flat.shape[2], at_most=SAMPLED).to(x.device)
        taken = flat.gather(2, at[:, None].expand(-1, flat.shape[1], -1)).unflatten(1, (layer.all_groups, -1))
        rows = taken.permute(1, 0, 3, 2).flatten(1, 2)[layer.groups]
        if not layer.repeated:
            return InputMoments.of(rows, x, len(x))
        average = layer.taken_on_average(x.mean(0, dtype=torch.float64), layer.all_groups)  # maps may differ in size
        return InputMoments.of(rows, average[None], rows.shape[1])

    def _of_gates(self, layer: GateLayer, node: fx.Node) -> InputMoments:
        taken = layer.taken(trail_of(node, layer.at, self.env.__getitem__)).transpose(0, 1)  # (sample, step, input)
        at = sample_positions(self.first, *taken.shape[:2], at_most=SAMPLED).to(taken.device)
        rows = taken.gather(1, at[..., None].expand(-1, -1, taken.shape[2])).flatten(0, 1)
        return InputMoments.of(rows[None], rows, len(rows))


# -- one layer ------------------------------------------------------------------------------------------------------


def _folded(
    problem: RidgeProblem,
    fit: InputMoments | None,
    held_out: InputMoments | None,
    ridges: tuple[float, ...],
    tensors: dict[str, Tensor],
) -> str:
    """Puts the best candidate's values into ``tensors``; returns what it is called."""
    if fit is None:
        return "nothing"
    layer = problem.layer
    candidates = {"nothing": RidgeSolution(problem, None, None)}
    for ridge in (None, *ridges) if layer.constant else ridges:
        candidates["bias" if ridge is None else f"affine {ridge:g}"] = solve_ridge(problem, fit, ridge)
    errors = {name: candidate.error(held_out or fit) for name, candidate in candidates.items()}
    best = min(errors, key=lambda name: errors[name])
    candidates[best].store(tensors)
    return best
