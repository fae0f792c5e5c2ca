"""The small graph computes what the dense one computes on the kept channels.

First by structure: the labels are walked again through the small graph, from the kept slices, and at every tie both
sides must hold the same channel at the same place. Then by numbers: the small graph against the dense graph in which
every removed channel is zero where it would be read, and norms take their statistics over kept channels.

A graph that follows one run is compared with the decisions of that run given to both (``decisions``), once the values
that they are made from agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from slim_model.cutting.cut import CutFailed
from slim_model.cutting.masked import Masked
from slim_model.errors import first_line
from slim_model.graph.decisions import Decided
from slim_model.graph.graph import Graph, source_line
from slim_model.graph.tensor_trees import batch_of
from slim_model.labels.values import Replay, Value, tensors_in
from slim_model.ops import Cut, kind_of, row_of
from slim_model.proof.in_float64 import doubled, widened
from slim_model.proof.structure import check_structure
from slim_model.proof.tolerance import TOLERANCE, largest_abs, relative_error


@dataclass(frozen=True, slots=True)
class Proof:
    """``masked_max_rel_error``: largest error over all outputs, relative to the largest value of that output;
    ``layer_max_rel_error``: the same over the outputs of all layers; ``ties`` were checked by structure;
    ``float64``: measured in float64, because float32 rounding alone came near the tolerance; ``outputs_vary``: they
    are not the same for the first two inputs; ``same_inputs``: names of the inputs that had one value in all;
    ``factored_max_rel_error``: of the outputs and layers of the dense model with its layers factored, against the dense
    model; None where none is."""

    masked_max_rel_error: float
    layer_max_rel_error: float
    ties: int
    batches: tuple[int, ...]
    float64: bool = False
    outputs_vary: bool = True
    same_inputs: tuple[str, ...] = ()
    onnx_max_rel_error: float | None = None
    factored_max_rel_error: float | None = None

    def and_then(self, other: Proof) -> Proof:
        """Of two steps in turn: errors add up."""
        return Proof(
            self.masked_max_rel_error + other.masked_max_rel_error,
            self.layer_max_rel_error + other.layer_max_rel_error,
            self.ties + other.ties,
            other.batches,
            self.float64 or other.float64,
            other.outputs_vary,
            other.same_inputs,
        )


def prove(dense: Graph, small: Graph, cut: Cut, replay: Replay, batches: list[tuple[Any, ...]]) -> Proof:
    """Prove on all ``batches`` that ``small`` equals the masked dense graph: by structure, then by numbers.

    Returns the errors that were measured. Raises CutFailed, which names the first node where the two differ.
    """
    ties = check_structure(small, replay)
    in_float64 = False
    try:
        runs = [_lockstep(dense, small, cut, inputs) for inputs in batches]
    except CutFailed:  # rounding, or a fault? float64 tells
        in_float64 = True
        wide = [tuple(map(widened, inputs)) for inputs in batches]
        runs = [_lockstep(doubled(dense), doubled(small), cut, inputs, wide=True) for inputs in wide]
    outputs, layers = (max(e) for e in zip(*((run.outputs_error, run.layers_error) for run in runs), strict=True))
    vary = len(runs) > 1 and _differ(*(run.first for run in runs[:2]))
    sizes, same = tuple(batch_of(inputs) for inputs in batches), _same_inputs(dense, batches)
    return Proof(outputs, layers, ties, sizes, in_float64, vary, same)


def _same_inputs(graph: Graph, batches: list[tuple[Any, ...]]) -> tuple[str, ...]:
    """The inputs whose values are the same in all ``batches``, where all have them."""
    names = [node.name for node in graph.nodes if node.op == "placeholder" and node.name not in graph.owners]
    return tuple(
        name
        for name, (first, *others) in zip(names, zip(*batches, strict=True), strict=True)
        if isinstance(first, Tensor) and first.numel() and not any(_differ([first], [other]) for other in others)
    )


def _differ(one: list[Tensor], two: list[Tensor]) -> bool:
    return any(not relative_error(*_common(a, b)) < 1e-6 for a, b in zip(one, two, strict=True))


def _common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that both have, where free axes have two sizes."""
    places = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=False))
    return a[places], b[places]


class _LockstepErrors(NamedTuple):
    """The largest error of the outputs and of the layers, and the small graph's outputs (of the first sample, where the
    batch is free)."""

    outputs_error: float
    layers_error: float
    first: list[Tensor]


def _lockstep(dense: Graph, small: Graph, cut: Cut, inputs: tuple[Any, ...], *, wide: bool = False) -> _LockstepErrors:
    """Run both graphs node by node. Raises CutFailed at the first layer that differs."""
    masked, small_run = Masked(dense, cut, wide=wide), Decided(small.module, small.decisions, wide=wide)
    masked.env, small_run.env = dense.bind(inputs), small.bind(inputs)
    last_use = _last_uses(dense, small)
    layers = 0.0
    with torch.no_grad():
        for node, small_node in zip(dense.nodes, small.nodes, strict=True):
            if node.op == "output":
                outputs = [x for n in small_node.all_input_nodes if isinstance(x := small_run.env[n], Tensor)]
                first = [x[:1] if x.dim() and dense.dynamic_batch else x for x in outputs]
                return _LockstepErrors(_output_error(node, small_node, masked, small_run), layers, first)
            if node.op == "placeholder" or kind_of(node) == "assertion":
                continue  # it computes nothing, and does not hold in float64
            try:
                masked.env[node] = masked.run_node(node)
                small_run.env[small_node] = small_run.run_node(small_node)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise CutFailed(node.name, first_line(error)) from error
            _decide_once(node, small_node, masked, small_run)
            layers = max(layers, _layer_error(node, small_node, masked, small_run))
            for dead, small_dead in last_use.get(node, ()):
                masked.env.pop(dead, None)
                small_run.env.pop(small_dead, None)
    raise AssertionError("a graph ends with its output")


def _decide_once(node: fx.Node, small_node: fx.Node, masked: Masked, small_run: fx.Interpreter) -> None:
    """A sort, a threshold, the largest value: rounding alone may turn them. Where the values that they look at agree
    on both sides, both go on with one decision; where these differ, it is left to differ and is found behind.

    Where the decision is given to both, as the dense model took it on the example, nothing else than these values can
    show a difference. That they agree says that the small model would decide as the masked one does.
    """
    if node.name in masked.decisions:
        if not _read_the_same(node, small_node, masked, small_run):
            raise CutFailed(node.name, f"the values that it decides on differ ({source_line(node)})")
        return
    # Only what comes out as indices, flags or steps jumps by rounding; other values are compared as they are.
    decided, decided_small = pytree.tree_leaves(masked.env[node]), pytree.tree_leaves(small_run.env[small_node])
    tensors = [x for x in decided if isinstance(x, Tensor)]
    row = row_of(node.target)
    jumps = row is not None and row.curve == "steps"  # as a comparison does, though no flag comes out
    decides = jumps or any(not x.is_floating_point() for x in tensors)
    if not decides or not tensors or any(not isinstance(x, Tensor) for x in decided):
        return
    # Seen on the kept channels, most decisions are the same: then nothing is to be done.
    values = tensors_in([masked.cut.values[node]])
    decided = [masked.cut.gathered(x, v) for x, v in zip(decided, values, strict=True)]
    if all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(decided, decided_small, strict=True)):
        return
    # They differ although what they look at agrees: it was rounding, and the small side takes the masked side's.
    if _read_the_same(node, small_node, masked, small_run):
        whole = isinstance(masked.env[node], Tensor)
        small_run.env[small_node] = decided[0] if whole else type(masked.env[node])(decided)


def _read_the_same(node: fx.Node, small_node: fx.Node, masked: Masked, small_run: fx.Interpreter) -> bool:
    for read, other_read in _read(node, small_node):
        value, a, b = masked.cut.values[read], masked.env[read], small_run.env[other_read]
        compared = isinstance(a, Tensor) and isinstance(value, Value)
        if compared and not relative_error(masked.cut.gathered(a, value), b) <= TOLERANCE:
            return False
    return True


def _layer_error(node: fx.Node, small_node: fx.Node, masked: Masked, small_run: fx.Interpreter) -> float:
    row, value = row_of(node.target), masked.cut.values[node]
    if row is None or row.masks == "nothing" or not isinstance(value, Value):
        return 0.0
    _check_statistic(node, small_node, masked, small_run, row.masks)
    expected = masked.cut.gathered(masked.env[node], value)
    error = relative_error(expected, small_run.env[small_node])
    if error > TOLERANCE and _cancelled(expected, small_run.env[small_node], small_node, small_run):
        small_run.env[small_node] = expected  # both go on with one, or a norm behind would blow up what they differ by
        return 0.0
    if not error <= TOLERANCE:
        raise CutFailed(node.name, f"its values differ by {error:.1e} ({source_line(node)})")
    return error


def _cancelled(expected: Tensor, got: Tensor, small_node: fx.Node, small_run: fx.Interpreter) -> bool:
    """In float64 both are rounding alone: all that they differ by is no more than that of what they are summed from."""
    if got.dtype is not torch.float64 or expected.shape != got.shape or not got.isfinite().all():
        return False
    read = [
        x for n in small_node.all_input_nodes if isinstance(x := small_run.env[n], Tensor) and x.is_floating_point()
    ]
    return largest_abs(expected - got) <= _ROUNDING * max(map(largest_abs, read), default=0.0)


_ROUNDING = 1e-13  # of float64, over sums of some hundred values


def _check_statistic(node: fx.Node, small_node: fx.Node, masked: Masked, small_run: fx.Interpreter, masks: str) -> None:
    """The spread of a single channel is no number, on both sides alike: the model would be proven, and useless. Where
    no channel is gone, the dense model gives none either."""
    reads = [(masked.env[big], small_run.env[little]) for big, little in _read(node, small_node)]
    gone = any(isinstance(a, Tensor) and a.shape != b.shape for a, b in reads)
    if masks == "kept" and gone and not _finite(small_run.env[small_node]) and all(_finite(b) for _, b in reads):
        raise CutFailed(node.name, "over the channels that are left it is no number")


def _read(node: fx.Node, small_node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    return zip(node.all_input_nodes, small_node.all_input_nodes, strict=True)


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def _output_error(node: fx.Node, small_node: fx.Node, masked: Masked, small_run: fx.Interpreter) -> float:
    worst = 0.0
    for expected, got in _read(node, small_node):
        if isinstance(masked.env[expected], Tensor):
            error = relative_error(masked.env[expected], small_run.env[got])
            if not error <= TOLERANCE:
                raise CutFailed(expected.name, f"an output differs by {error:.1e}")
            worst = max(worst, error)
    return worst


def _last_uses(dense: Graph, small: Graph) -> dict[fx.Node, list[tuple[fx.Node, fx.Node]]]:
    """node -> values (dense and small) that nobody reads after it."""
    reader = {read: node for node in dense.nodes for read in node.all_input_nodes}
    last_use: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
    for node, small_node in zip(dense.nodes, small.nodes, strict=True):
        last_use.setdefault(reader.get(node, node), []).append((node, small_node))
    return last_use
