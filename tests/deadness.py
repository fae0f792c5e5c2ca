"""deadness: channels made dead beforehand, and removed, change no output. The law behind every other one.

Dead means zero for every input, where it is read. Rows that make some channels are set to zero in a copy of the user's
own module; the command then removes just these, as the smallest, and the small module must give what the copy gives.
Nothing here asks the prover. Of slim-model's knowledge three things are used: which rows make a channel, whether all
that a layer reads of it is zero (else it is not dead: a sigmoid of 0 is 0.5), and which norms follow kept channels by
definition, from the table that the report is made of.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from slim_model.calling.outputs import output_tensors
from slim_model.cutting.cut import cut_of
from slim_model.errors import BudgetError
from slim_model.graph.decisions import Decided
from slim_model.graph.graph import Graph
from slim_model.labels.values import Value
from slim_model.ops import row_of
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe

TOLERANCE = 1e-4


class Alive(AssertionError):
    """Removing dead channels changed an output."""


def removing_the_dead_changes_nothing(
    model: nn.Module, found: Compiled, others: tuple[Any, ...], **options: Any
) -> str:
    """Holds ``model`` against the law, with the channels that ``found`` removed. ``others``: inputs that nobody has
    seen; ``options``: those of ``found``. Returns "" where it holds, or why it does not apply; raises Alive."""
    inputs, dense = found.dense.inputs, found.dense
    _outputs(dense, model, inputs)  # what hooks left in it has no gradient now, and can be copied
    dead = _killed(model, found)
    if not all(x.isfinite().all() for x in _outputs(dense, dead, inputs) if x.is_floating_point()):
        return "a norm of zeros is no number"
    try:
        recipe = Recipe.of(**options | {"criterion": "l1"})
        again = compile_model(dead, dense.arguments.filled(inputs), recipe, graph=_graph_of(dead, dense))
    except BudgetError:
        return "nothing can be removed"
    if not _removes(found, again):
        return "other channels are smaller"
    if again.kept_norms():
        _no_norm_of_weights(again)
        return "a norm follows the channels that are left"
    if not _dead_where_read(again):
        return "its zeros become something else"
    small, *_ = make_small_module(dead, again.small)
    for given in (inputs, others):
        error = _error(_outputs(dense, dead, given), _outputs(dense, small, given))
        if not error <= TOLERANCE:
            raise Alive(f"dead channels were removed, and an output changed by {error:.1e}")
    return ""


def _graph_of(dead: nn.Module, dense: Graph) -> Graph | None:
    """The graph that is there already, with the copy's values; None where some of it was computed from them, or
    follows one run, so that the copy is traced anew. The law compares outputs of the copy itself in either case."""
    if dense.folded or dense.program is None:
        return None
    state = dict(dead.named_parameters(remove_duplicate=False)) | dict(dead.named_buffers(remove_duplicate=False))
    return dense.with_tensors({name: state.get(name, tensor).detach() for name, tensor in dense.tensors.items()})


def _killed(model: nn.Module, found: Compiled) -> nn.Module:
    """A copy in which all that makes or holds a removed channel is zero: of a computed weight, its gains, or else all
    that it is made from."""
    model = copy.deepcopy(model)
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    sources = {weight.name: (*weight.sources, weight.name) for weight in found.dense.folded}
    for group in found.coupling.groups:
        removed = ~found.plan.keep[group.channels]
        for part in group.slices:
            gone = torch.from_numpy(np.flatnonzero((part.channel >= 0) & removed[part.channel]))
            made_from = [state[name] for name in sources.get(part.parameter, (part.parameter,)) if name in state]
            fit = [t for t in made_from if t.dim() > part.axis and t.shape[part.axis] == len(part.channel)]
            gains = [t for t in fit if t.numel() == len(part.channel) and len(made_from) > 1]
            for tensor in gains[:1] or fit:  # of one input, a direction has as many numbers, and none may be zero
                if part.role != "reads" and tensor.is_floating_point():
                    with torch.no_grad():
                        tensor.index_fill_(part.axis, gone, 0)
    return model


def _no_norm_of_weights(found: Compiled) -> None:
    """What follows from parameters alone is a constant, and no norm that may follow what is left."""
    for node in found.coupling.graph.nodes:
        row = row_of(node.target) if node.op == "call_function" else None
        if (
            row is not None
            and row.over is not None
            and found.coupling.labelled.constants.of(node.all_input_nodes[0]) is not None
        ):
            raise Alive(f"{node.target} takes a statistic of weights")


def _removes(found: Compiled, again: Compiled) -> bool:
    """The same channels of the same layers went."""
    mine, other = ({place: rows.tolist() for place, rows in one.kept_positions().items()} for one in (found, again))
    return mine == other


def _dead_where_read(found: Compiled) -> bool:
    """Whatever sums over channels, or takes a statistic of them, reads zero at the removed positions."""
    cut, graph = cut_of(found.coupling, found.plan.keep), found.dense
    alive: list[fx.Node] = []

    class Watching(Decided):
        def run_node(self, n: fx.Node) -> Any:
            row = row_of(n.target) if n.op == "call_function" else None
            if row is not None and row.masks != "nothing":
                for operand in n.all_input_nodes:
                    value = cut.values[operand]
                    if operand.op == "call_function" and isinstance(value, Value) and cut.cuts(value):
                        gone = self.env[operand].clone()
                        for axis, labels in enumerate(value.axes):
                            kept = cut.kept(labels, value.shape[axis])
                            if not kept.all() and gone.index_select(axis, torch.nonzero(~kept).flatten()).any():
                                alive.append(n)
            return super().run_node(n)

    with torch.no_grad():
        Watching(graph.module, graph.decisions).run(initial_env=graph.bind(graph.inputs))
    return not alive


def _outputs(dense: Graph, model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return output_tensors(dense.call(model, inputs))


def _error(one: list[Tensor], other: list[Tensor]) -> float:
    if [x.shape for x in one] != [x.shape for x in other]:
        return float("inf")
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-3)) for a, b in zip(one, other, strict=True)))
