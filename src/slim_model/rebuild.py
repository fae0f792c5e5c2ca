"""rebuild: the small model as a module, of the user's own classes where these compute what the small graph does.

A forward that works out its sizes from other sizes may run on a smaller layer and compute something else: 24 channels
that were 4 heads of 6 are cut by a remembered width of 12 into 2 heads. Where attention hardly matters, the outputs do
not show it. So every layer of the module must give what it gives in the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
    module = _shrunk(model, compiled.small)
    if module is not None and _computes(module, compiled.small):
        return module, True
    return graph_module(compiled.small), False


def _shrunk(model: nn.Module, small: Graph) -> nn.Module | None:
    try:
        return shrink_module(model, small.tensors).eval()
    except Exception:  # a class of the user's may refuse to be copied: the graph is the ground truth
        return None


def _computes(module: nn.Module, small: Graph) -> bool:
    """Whether ``module`` does what ``small`` does on a batch of one: there no ``view(-1, ...)`` can take from the batch
    what is missing of its channels. A model may treat a batch of one in a way of its own: then on two larger ones."""
    return _agrees(module, small, first_of(small)) or (
        small.dynamic_batch and all(_agrees(module, small, x) for x in (small.inputs, _with_one_more(small)))
    )


def _agrees(module: nn.Module, small: Graph, inputs: tuple[Any, ...]) -> bool:
    """Both give the same outputs, and the layers on the way the same values."""
    plain = small.with_tensors({name: tensor.detach() for name, tensor in small.tensors.items()})
    copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    with _unfused(module), torch.no_grad():
        with _Record() as theirs:
            expected = plain.run(inputs)
        try:
            with _Record() as mine:
                outputs = [x for x in pytree.tree_leaves(module(*copies)) if isinstance(x, Tensor)]
        except Exception:  # the user's forward may fail in any way on other sizes
            return False
    return (
        len(outputs) == len(expected)
        and all(map(_close, expected, outputs))
        and _in_order(iter(mine.found), theirs.found)
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


def _with_one_more(small: Graph) -> tuple[Any, ...]:
    """A model may treat a batch of one in a way of its own."""
    return tuple(torch.cat([x, x[:1]]) if isinstance(x, Tensor) and x.dim() else x for x in small.inputs)


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
