"""prove: the small graph computes what the dense one computes on the kept channels.

First by structure: the labels are walked again through the small graph, from the kept slices, and at every tie both
sides must hold the same channel at the same place. Then by numbers: the small graph against the dense graph in which
every removed channel is zero where it would be read, and norms take their statistics over kept channels.

A graph that follows one run is compared with the decisions of that run given to both (``decisions``), once the values
that they are made from agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from slim_model.decisions import Decided
from slim_model.errors import InputError, ProofError
from slim_model.labels import Axis, Replay, Value, Walk, bound, tensors_in
from slim_model.ops import Cut, flow_of, row_of
from slim_model.shrink import CutFailed
from slim_model.trace import Graph, first_of, source_line

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Proof:
    """``masked_max_rel_error``: largest error over all outputs, relative to the largest value of that output;
    ``layer_max_rel_error``: the same over the outputs of all layers; ``ties`` were checked by structure;
    ``float64``: measured in float64, because float32 rounding alone came near the tolerance; ``outputs_vary``: they
    are not the same for all inputs that were tried (None: one input only)."""

    masked_max_rel_error: float
    layer_max_rel_error: float
    ties: int
    batches: tuple[int, ...]
    float64: bool = False
    outputs_vary: bool | None = None
    onnx_max_rel_error: float | None = None

    def and_then(self, other: Proof) -> Proof:
        """Of two steps in turn: errors add up."""
        return Proof(
            self.masked_max_rel_error + other.masked_max_rel_error,
            self.layer_max_rel_error + other.layer_max_rel_error,
            self.ties + other.ties,
            other.batches,
            self.float64 or other.float64,
            other.outputs_vary,
        )


def check_trace(model: nn.Module, graph: Graph, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """The traced graph against the model itself, on the example input; returns what the user should be warned of."""
    single = first_of(graph)
    if graph.dynamic_batch and _trace_error(model, graph, inputs, single) <= TOLERANCE:
        return ()
    error = _trace_error(model, graph, inputs, graph.inputs)
    if error <= TOLERANCE:
        return () if not graph.dynamic_batch else (_OTHER_AT_ONE,)
    again = [_outputs(model, pytree.tree_unflatten(graph.inputs, pytree.tree_structure(inputs))) for _ in range(2)]
    if not _largest(*again) <= TOLERANCE:
        raise InputError(
            "the model gives other outputs when it is run again on the same input, so nothing can be proven of it. "
            "Make its forward deterministic in eval mode (random numbers, dropout left on, a counter?)."
        )
    raise ProofError(
        f"the traced graph differs from the model by {error:.1e} (relative; allowed {TOLERANCE:.0e}). Nothing was "
        "written. Give a .pt2 made by torch.export, or report the model."
    )


_OTHER_AT_ONE = (
    "the model itself treats a batch of one in another way than larger batches (a squeeze, or a branch on the batch "
    "size?); the small model treats it as it does larger ones. --static-batch --input 1x... is traced at one"
)


def _trace_error(model: nn.Module, graph: Graph, inputs: tuple[Any, ...], flat: tuple[Any, ...]) -> float:
    """The largest relative error over the outputs; infinite where the model does not run or has others."""
    try:
        expected = _outputs(model, pytree.tree_unflatten(flat, pytree.tree_structure(inputs)))
    except Exception:  # the user's forward, on a batch size that it was not given with
        return math.inf
    return _largest(expected, graph.run(flat)[-len(expected) :])  # buffers that the forward updates come first


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    copies = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
    with torch.no_grad():
        return [x for x in pytree.tree_leaves(model(*copies)) if isinstance(x, Tensor)]


def _largest(expected: list[Tensor], got: list[Tensor]) -> float:
    if len(expected) != len(got):
        return math.inf
    return max((relative_error(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)


def prove(dense: Graph, small: Graph, cut: Cut, replay: Replay, batches: list[tuple[Any, ...]]) -> Proof:
    """Raises CutFailed, which names the node, where the two differ."""
    ties = check_structure(small, replay)
    in_float64 = False
    try:
        runs = [_lockstep(dense, small, cut, inputs) for inputs in batches]
    except CutFailed:  # rounding, or a fault? float64 tells
        in_float64 = True
        wide = [tuple(_widened(x) for x in inputs) for inputs in batches]
        runs = [_lockstep(_double(dense), _double(small), cut, inputs, wide=True) for inputs in wide]
    outputs, layers = (max(e) for e in zip(*((run.outputs_error, run.layers_error) for run in runs), strict=True))
    vary = _differ(*(run.first for run in runs[:2])) if len(runs) > 1 else None
    return Proof(outputs, layers, ties, tuple(batch_of(inputs) for inputs in batches), in_float64, vary)


def _differ(one: list[Tensor], two: list[Tensor]) -> bool:
    return any(not relative_error(a, b) < 1e-6 for a, b in zip(one, two, strict=True))


def relative_error(reference: Tensor, other: Tensor) -> float:
    """max |a - b| / max |a|, never NaN; shapes must agree. Values that are not finite must be so on both sides."""
    if reference.shape != other.shape:
        return math.inf
    if reference.numel() == 0:
        return 0.0
    if not reference.is_floating_point():
        return float((reference != other).any())
    a, b = (x.float() if x.itemsize < 4 else x for x in (reference, other))
    scale = _largest_size(a)
    if not math.isfinite(scale):
        finite = a.isfinite()
        same = torch.equal(finite, b.isfinite()) and torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num())
        return relative_error(a[finite], b[finite]) if same else math.inf
    error = _largest_size(a - b)
    if math.isnan(error):
        return math.inf
    return error / scale if scale > 0 else error


def _largest_size(x: Tensor) -> float:
    """max |x|, NaN where one is; without a copy of x, which for images is most of the time."""
    low, high = x.aminmax()
    return float(torch.maximum(-low, high))


# -- structure ------------------------------------------------------------------------------------------------------


def check_structure(small: Graph, replay: Replay) -> int:
    """Walk the labels through the small graph; returns the number of ties that were checked."""
    walk = Walk(small, flow_of, replay=replay)
    try:
        walk.run()
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AssertionError) as error:
        raise CutFailed(walk.node.name, str(error).splitlines()[0]) from error
    checked = 0
    for left, right, node in walk.ties:
        if not torch.equal(left, right):
            raise CutFailed(node.name, "channels no longer line up")
        checked += len(left)
    for pin in walk.pins:
        if pin.labels.any():
            raise CutFailed(pin.node.name, "a fixed position was removed")
    return checked


# -- numbers --------------------------------------------------------------------------------------------------------


class Masked(Decided):
    """The dense graph with removed channels zero wherever a layer reads them."""

    def __init__(self, graph: Graph, cut: Cut, *, wide: bool = False) -> None:
        super().__init__(graph.module, graph.decisions, wide=wide, garbage_collect_values=True)
        self.cut = cut

    def run_node(self, n: fx.Node) -> Any:
        row = row_of(n.target) if n.op == "call_function" else None
        if row is None or row.masks == "nothing":
            return super().run_node(n)
        touched = {m: v for m in n.all_input_nodes if isinstance(v := self.cut.values[m], Value) and self.cut.cuts(v)}
        if not touched:
            return super().run_node(n)
        held = {m: self.env[m] for m in touched}
        for m, value in touched.items():
            inputs = row.masks == "inputs"
            self.env[m] = self._zeroed(n, m, value) if inputs else self.cut.gathered(self.env[m], value)
        try:
            return super().run_node(n) if row.masks == "inputs" else self._scattered(n, self._on_kept(n, row))
        finally:
            self.env.update(held)

    def _zeroed(self, node: fx.Node, operand: fx.Node, value: Value) -> Tensor:
        """A weight is large, and need not be zeroed where ``node`` hands an axis on as it is (what comes out there is
        zeroed where it is read) or sums it with the one activation that holds its channels (zero times a weight)."""
        tensor = self.env[operand]
        for i, axis in enumerate(value.axes):
            removed = torch.nonzero(~self.cut.kept(axis, value.shape[i])).flatten()
            if len(removed) and not (operand.op == "placeholder" and self._zero_already(node, axis)):
                tensor = tensor.index_fill(i, removed.to(tensor.device), 0)
        return tensor

    def _zero_already(self, node: fx.Node, axis: Axis) -> bool:
        outputs = tensors_in([self.cut.values[node]])
        if len(outputs) > 1:  # a recurrent layer reads what it makes itself, at the next step
            return False
        made = [other for out in outputs for other in out.axes]
        activations = tensors_in([self.cut.values[n] for n in node.all_input_nodes if n.op != "placeholder"])
        read = [other for other in activations[0].axes if other is not None] if len(activations) == 1 else []
        kept = self.cut.keep[axis.numpy()]  # type: ignore[union-attr]
        return any(axis is other for other in made) or any(
            len(other) == len(kept) and np.array_equal(self.cut.keep[other.numpy()], kept) for other in read
        )

    def _on_kept(self, node: fx.Node, row: Any) -> Any:
        arguments = bound(node) | (row.rewrite(self.cut, node) if row.rewrite else {})
        arguments = fx.map_arg(arguments, self.env.__getitem__)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        args = [arguments[a.name] for a in schema if not a.kwarg_only]
        kwargs = {a.name: arguments[a.name] for a in schema if a.kwarg_only}
        return self.call_function(node.target, tuple(args), kwargs)

    def _scattered(self, node: fx.Node, result: Any) -> Any:
        values = self.cut.values[node]
        if isinstance(result, tuple | list):
            return type(result)(self._spread(r, v) for r, v in zip(result, values, strict=True))
        return self._spread(result, values)

    def _spread(self, tensor: Tensor, value: Value) -> Tensor:
        for i, axis in enumerate(value.axes):
            kept = self.cut.kept(axis, value.shape[i])
            if not kept.all():
                full = tensor.new_zeros([*tensor.shape[:i], value.shape[i], *tensor.shape[i + 1 :]])
                tensor = full.index_copy(i, torch.nonzero(kept).flatten().to(tensor.device), tensor)
        return tensor


class _Run(NamedTuple):
    """The largest error of the outputs and of the layers, and the small graph's outputs (of the first sample, where the
    batch is free)."""

    outputs_error: float
    layers_error: float
    first: list[Tensor]


def _lockstep(dense: Graph, small: Graph, cut: Cut, inputs: tuple[Any, ...], *, wide: bool = False) -> _Run:
    """Run both graphs node by node. Raises CutFailed at the first layer that differs."""
    masked, other = Masked(dense, cut, wide=wide), Decided(small.module, small.decisions, wide=wide)
    masked.env, other.env = dense.bind(inputs), small.bind(inputs)
    last_use = _last_uses(dense, small)
    layers = 0.0
    with torch.no_grad():
        for node, copied in zip(dense.nodes, small.nodes, strict=True):
            if node.op == "output":
                outputs = [x for n in copied.all_input_nodes if isinstance(x := other.env[n], Tensor)]
                first = [x[:1] if x.dim() and dense.dynamic_batch else x for x in outputs]
                return _Run(_output_error(node, copied, masked, other), layers, first)
            if node.op == "placeholder" or node.target is torch.ops.aten._assert_tensor_metadata.default:
                continue  # it computes nothing, and does not hold in float64
            try:
                masked.env[node] = masked.run_node(node)
                other.env[copied] = other.run_node(copied)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise CutFailed(node.name, str(error).splitlines()[0]) from error
            _decide_once(node, copied, masked, other)
            layers = max(layers, _layer_error(node, copied, masked, other))
            for dead, dead_copy in last_use.get(node, ()):
                masked.env.pop(dead, None)
                other.env.pop(dead_copy, None)
    raise AssertionError("a graph ends with its output")


_STEPS = {
    *(torch.ops.aten.floor, torch.ops.aten.ceil, torch.ops.aten.round, torch.ops.aten.trunc, torch.ops.aten.sign),
    *(torch.ops.aten.remainder, torch.ops.aten.fmod, torch.ops.aten.floor_divide),
}
"""They decide as a comparison does, though what comes out is no index and no flag."""


def _decide_once(node: fx.Node, copied: fx.Node, masked: Masked, other: fx.Interpreter) -> None:
    """A sort, a threshold, the largest value: rounding alone may turn them. Where the values that they look at agree
    on both sides, both go on with one decision; where these differ, it is left to differ and is found behind.

    Where the decision is given to both, as the dense model took it on the example, nothing else than these values can
    show a difference. That they agree says that the small model would decide as the masked one does.
    """
    if node.name in masked.decisions:
        if not _read_the_same(node, copied, masked, other):
            raise CutFailed(node.name, f"the values that it decides on differ ({source_line(node)})")
        return
    taken, own = pytree.tree_leaves(masked.env[node]), pytree.tree_leaves(other.env[copied])
    tensors = [x for x in taken if isinstance(x, Tensor)]
    decides = any(not x.is_floating_point() for x in tensors) or getattr(node.target, "overloadpacket", None) in _STEPS
    if not decides or not tensors or any(not isinstance(x, Tensor) for x in taken):
        return
    values = tensors_in([masked.cut.values[node]])
    taken = [masked.cut.gathered(x, v) for x, v in zip(taken, values, strict=True)]
    if all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(taken, own, strict=True)):
        return
    if _read_the_same(node, copied, masked, other):
        other.env[copied] = taken[0] if isinstance(masked.env[node], Tensor) else type(masked.env[node])(taken)


def _read_the_same(node: fx.Node, copied: fx.Node, masked: Masked, other: fx.Interpreter) -> bool:
    for read, other_read in _read(node, copied):
        value, a, b = masked.cut.values[read], masked.env[read], other.env[other_read]
        compared = isinstance(a, Tensor) and isinstance(value, Value)
        if compared and not relative_error(masked.cut.gathered(a, value), b) <= TOLERANCE:
            return False
    return True


def _layer_error(node: fx.Node, copied: fx.Node, masked: Masked, other: fx.Interpreter) -> float:
    row, value = row_of(node.target), masked.cut.values[node]
    if row is None or row.masks == "nothing" or not isinstance(value, Value):
        return 0.0
    _check_statistic(node, copied, masked, other, row.masks)
    expected = masked.cut.gathered(masked.env[node], value)
    error = relative_error(expected, other.env[copied])
    if error > TOLERANCE and _cancelled(expected, other.env[copied], copied, other):
        other.env[copied] = expected  # both go on with one, or a norm behind would blow up what they differ by
        return 0.0
    if not error <= TOLERANCE:
        raise CutFailed(node.name, f"its values differ by {error:.1e} ({source_line(node)})")
    return error


def _cancelled(expected: Tensor, got: Tensor, copied: fx.Node, other: fx.Interpreter) -> bool:
    """In float64 both are rounding alone: all that they differ by is no more than that of what they are summed from."""
    if got.dtype is not torch.float64 or expected.shape != got.shape or not got.isfinite().all():
        return False
    read = [x for n in copied.all_input_nodes if isinstance(x := other.env[n], Tensor) and x.is_floating_point()]
    return _largest_size(expected - got) <= _ROUNDING * max(map(_largest_size, read), default=0.0)


_ROUNDING = 1e-13  # of float64, over sums of some hundred values


def _check_statistic(node: fx.Node, copied: fx.Node, masked: Masked, other: fx.Interpreter, masks: str) -> None:
    """The spread of a single channel is no number, on both sides alike: the model would be proven, and useless. Where
    no channel is gone, the dense model gives none either."""
    reads = [(masked.env[big], other.env[little]) for big, little in _read(node, copied)]
    gone = any(isinstance(a, Tensor) and a.shape != b.shape for a, b in reads)
    if masks == "kept" and gone and not _finite(other.env[copied]) and all(_finite(b) for _, b in reads):
        raise CutFailed(node.name, "over the channels that are left it is no number")


def _read(node: fx.Node, copied: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    return zip(node.all_input_nodes, copied.all_input_nodes, strict=True)


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def _output_error(node: fx.Node, copied: fx.Node, masked: Masked, other: fx.Interpreter) -> float:
    worst = 0.0
    for expected, got in _read(node, copied):
        if isinstance(masked.env[expected], Tensor):
            error = relative_error(masked.env[expected], other.env[got])
            if not error <= TOLERANCE:
                raise CutFailed(expected.name, f"an output differs by {error:.1e}")
            worst = max(worst, error)
    return worst


def _last_uses(dense: Graph, small: Graph) -> dict[fx.Node, list[tuple[fx.Node, fx.Node]]]:
    """node -> values (dense and small) that nobody reads after it."""
    reader = {read: node for node in dense.nodes for read in node.all_input_nodes}
    found: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
    for node, copied in zip(dense.nodes, small.nodes, strict=True):
        found.setdefault(reader.get(node, node), []).append((node, copied))
    return found


def _double(graph: Graph) -> Graph:
    return graph.with_tensors({name: _widened(tensor) for name, tensor in graph.tensors.items()})


def _widened(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def batch_of(inputs: tuple[Any, ...]) -> int:
    return next((x.shape[0] for x in inputs if isinstance(x, Tensor) and x.dim()), 1)
