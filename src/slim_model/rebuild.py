"""rebuild: the small model as a module, of the user's own classes where these compute what the small graph does.

A forward that works out its sizes from other sizes may run on a smaller layer and compute something else: 24 channels
that were 4 heads of 6 are cut by a remembered width of 12 into 2 heads. Where attention hardly matters, the outputs do
not show it. So every layer of the module must give what it gives in the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slim_model.ops import row_of
from slim_model.prove import TOLERANCE, relative_error
from slim_model.shrink import graph_module, shrink_module
from slim_model.trace import Graph, first_of

if TYPE_CHECKING:
    from slim_model.slim import Compiled

_SAMPLED = 4096  # values of a layer's output that are compared


def small_module(model: nn.Module, compiled: Compiled) -> tuple[nn.Module, bool]:
    """The user's own module made small, where it computes what the small graph does; else the graph as a module.

    Returns (module, whether it is of the user's own classes).
    """
    try:
        module = shrink_module(model, compiled.small.tensors).eval()
        if _computes(module, compiled.small):
            return module, True
    except Exception:  # the user's forward may fail in any way on other sizes: the graph is the ground truth
        return graph_module(compiled.small), False
    return graph_module(compiled.small), False


def _computes(module: nn.Module, small: Graph) -> bool:
    """Whether ``module`` gives the outputs of ``small``, and the layers on the way the same values; and the outputs at
    another batch size too, as a ``view(-1, ...)`` may take what is missing from the batch where that divides it."""

    def run(inputs: tuple[Any, ...]) -> list[Tensor]:
        leaves = pytree.tree_leaves(module(*(x.clone() if isinstance(x, Tensor) else x for x in inputs)))
        return [x for x in leaves if isinstance(x, Tensor)]

    plain = small.with_tensors({name: tensor.detach() for name, tensor in small.tensors.items()})
    with _unfused(module), torch.no_grad():
        with _Record() as mine:
            outputs = run(small.inputs)
        with _Record() as theirs:
            expected = plain.run(small.inputs)
    return (
        _same(expected, outputs)
        and _in_order(iter(mine.found), theirs.found)
        and (not small.dynamic_batch or any(_agrees(small, run, x) for x in (first_of(small), _with_one_more(small))))
    )


@contextlib.contextmanager
def _unfused(module: nn.Module) -> Iterator[None]:
    """One operator for a whole layer, and others for a linear one whose weight is trained, could not be compared."""
    fused = torch.backends.mha.get_fastpath_enabled()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for parameter in trained:
            parameter.requires_grad = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in trained:
            parameter.requires_grad = True


def _agrees(small: Graph, run: Callable[[tuple[Any, ...]], list[Tensor]], inputs: tuple[Any, ...]) -> bool:
    try:
        with torch.no_grad():
            return _same(small.run(inputs), run(inputs))
    except Exception:  # the user's forward, on a batch size that it was not given with
        return False


def _with_one_more(small: Graph) -> tuple[Any, ...]:
    """A model may treat a batch of one in a way of its own."""
    return tuple(torch.cat([x, x[:1]]) if isinstance(x, Tensor) and x.dim() else x for x in small.inputs)


def _same(expected: list[Tensor], outputs: list[Tensor]) -> bool:
    return len(outputs) == len(expected) and all(map(_close, expected, outputs))


class _Layer(NamedTuple):
    target: Any
    shape: tuple[int, ...]
    values: Tensor


def _in_order(mine: Iterator[_Layer], expected: list[_Layer]) -> bool:
    """The module may compute more: numbers that are stored in the graph."""
    return all(
        any(m.target is e.target and m.shape == e.shape and _close(e.values, m.values) for m in mine) for e in expected
    )


def _close(expected: Tensor, other: Tensor) -> bool:
    return relative_error(expected, other) <= TOLERANCE


class _Record(TorchDispatchMode):
    """Keeps some values of whatever a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Layer] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        row = row_of(func)
        if row.macs or row.masks != "nothing" if row else "attention" in func.__name__:
            first = pytree.tree_leaves(result)[0]
            step = max(1, first.numel() // _SAMPLED)
            self.found.append(_Layer(func, tuple(first.shape), first.detach().reshape(-1)[::step].clone()))
        return result
