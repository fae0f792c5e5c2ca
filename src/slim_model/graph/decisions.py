"""Record the results of data-dependent operators (sort, threshold, NMS) in one run, and replay them in another.

A threshold, a sort, the suppression of boxes turn values into positions, and how many there are becomes a size. A graph
that follows one run has these sizes in it as numbers, so it holds for the decisions of that run alone. With fewer
channels the values differ, and other boxes would be kept. Such a graph therefore is run with the decisions of its
example given: whatever turns floating-point values into whole numbers or flags gives what it gave then, and a sort
gives the values at the places it gave then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_ORDERED = {
    *(aten.topk, aten.sort, aten.max, aten.min, aten.median, aten.kthvalue, aten.mode, aten.cummax, aten.cummin),
}
"""They give values and the places where these were found."""

Decision = tuple[Any, ...]
"""By output of an operator: what was decided; None for an output that decides nothing."""


def decision_of(func: Any, arguments: Any, result: Any) -> Decision | None:
    """The decision that ``func`` took where it read floats: its results that are no floats (flags, indices, counts).
    None where it took none."""
    if not isinstance(func, torch._ops.OpOverload) or not any(map(_is_float, pytree.tree_leaves(arguments))):
        return None
    reads = func.overloadpacket is aten._local_scalar_dense
    decision = tuple(
        x if reads or (isinstance(x, Tensor) and not _is_float(x)) else None for x in pytree.tree_leaves(result)
    )
    return decision if any(x is not None for x in decision) else None


def replay_decision(func: Any, args: Any, kwargs: Any, result: Any, decision: Decision) -> Any:
    """``result`` with what was decided replaced by the recorded ``decision``. Flags of another shape (other channels)
    stay as they were computed."""
    leaves, spec = pytree.tree_flatten(result)
    if torch.Tag.pointwise in func.tags and leaves[0].shape != decision[0].shape:
        return result
    leaves = [own if x is None else _copied(x) for own, x in zip(leaves, decision, strict=True)]
    if func.overloadpacket in _ORDERED:
        arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        leaves[0] = _found_at(arguments["self"], arguments.get("dim", -1), leaves[1])
    return pytree.tree_unflatten(leaves, spec)


def _found_at(values: Tensor, dim: int, indices: Tensor) -> Tensor:
    if indices.dim() == values.dim():
        return values.gather(dim, indices)
    return values.gather(dim, indices.unsqueeze(dim)).squeeze(dim)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


class Decided(fx.Interpreter):
    """Runs a graph and replays its ``decisions``, by the names of nodes. ``wide``: computes in float64, whatever dtype
    is written."""

    def __init__(
        self, module: fx.GraphModule, decisions: Mapping[str, Decision], *, wide: bool = False, **options: Any
    ) -> None:
        super().__init__(module, **options)
        self.decisions, self.wide = decisions, wide

    def run_node(self, n: fx.Node) -> Any:
        decision = self.decisions.get(n.name)
        if decision is None:
            return super().run_node(n)
        if len(decision) == 1:
            return _copied(decision[0])
        return replay_decision(n.target, *self.fetch_args_kwargs_from_env(n), super().run_node(n), decision)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self.wide:
            args, kwargs = pytree.tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.double() if self.wide and _is_float(value) else value


def decisions_of(module: fx.GraphModule, bound: dict[fx.Node, Any]) -> dict[str, Decision]:
    """Record the decisions of one run of ``module``, whose placeholders are ``bound``, by the names of nodes."""
    decisions: dict[str, Decision] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if decision := decision_of(n.target, self.fetch_args_kwargs_from_env(n), result):
                decisions[n.name] = tuple(map(_copied, decision))
            return result

    with torch.no_grad():
        Noting(module).run(initial_env=bound)
    return decisions


# -- a module, which is Python and not a graph ----------------------------------------------------------------------


class DecisionRecorder(TorchDispatchMode):
    """Records the decisions of the code that runs inside it, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[tuple[Any, Decision]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if decision := decision_of(func, (args, kwargs), result):
            self.decisions.append((func, tuple(map(_copied, decision))))
        return result


class DecisionReplayer(TorchDispatchMode):
    """Replays the decisions of a ``DecisionRecorder`` to the code that runs inside it.

    Raises LookupError where this run decides something that the other did not.
    """

    def __init__(self, noted: DecisionRecorder) -> None:
        super().__init__()
        self.left = iter(noted.decisions)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if decision_of(func, (args, kwargs), result) is None:
            return result
        other, decision = next(self.left, (None, ()))
        if other is not func:
            raise LookupError(f"{func} was not decided in the other run")
        return replay_decision(func, args, kwargs or {}, result, decision)
