"""Which whole numbers an input may hold, as far as a run shows: those that the tables have which it is looked up in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Span(NamedTuple):
    """The least and the largest number, both of them allowed."""

    least: int
    most: int


def looked_up(run: Callable[..., Any], inputs: Sequence[Any]) -> list[Span | None]:
    """``run(*inputs)`` is watched: of each input of whole numbers that looks up rows of a table, what it may hold so
    that every table has the row; None of the others. What ``run`` raises is left aside, with what it would have done.

    Each such input is filled with its least number: what is added to it on the way is added to each.
    """
    filled = [torch.full_like(x, int(x.min())) if _is_whole(x) and x.numel() else x for x in inputs]
    watch = _Watch(filled)
    with contextlib.suppress(Exception), torch.no_grad(), watch:
        run(*filled)
    return [watch.spans.get(number) for number in range(len(inputs))]


_SAME = {  # the same numbers, in another order or type, some of them left out, or all of them moved by one number
    *(aten._to_copy, aten.clone, aten.add, aten.sub, aten.clamp, aten.clamp_min, aten.clamp_max, aten.cat, aten.stack),
    *(aten.constant_pad_nd, aten.roll, aten.flip, aten.contiguous, aten.repeat, aten._unsafe_view, aten.where),
}
_TABLES: dict[Any, Callable[..., tuple[Tensor, int]]] = {
    aten.embedding: lambda weight, indices, *_: (indices, len(weight)),
    aten._embedding_bag: lambda weight, indices, *_: (indices, len(weight)),
    aten._embedding_bag_forward_only: lambda weight, indices, *_: (indices, len(weight)),
    aten.index_select: lambda source, dim, index: (index, source.shape[dim]),
    aten.gather: lambda source, dim, index, **_: (index, source.shape[dim]),
    aten.scatter: lambda source, dim, index, *_, **__: (index, source.shape[dim]),
    aten.scatter_: lambda source, dim, index, *_, **__: (index, source.shape[dim]),
}
"""What is looked up, and how many rows there are."""


class _Watch(TorchDispatchMode):
    """Follows whole numbers from the inputs to tables."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.inputs = inputs
        self.spans: dict[int, Span] = {}
        self._source = {id(x): number for number, x in enumerate(inputs) if _is_whole(x)}
        self._alive: list[Any] = []  # or another tensor would get its id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _TABLES:
            self._look_up(*_TABLES[packet](*args, **kwargs))
        elif packet is aten.index:
            for axis, index in enumerate(args[1]):
                if _is_whole(index):
                    self._look_up(index, args[0].shape[axis])
        elif packet is aten.eq and _counts_up(args[1]):  # one place of each that is hot
            self._look_up(args[0], args[1].numel())
        result = func(*args, **kwargs)
        sources = {self._source[id(x)] for x in pytree.tree_leaves((args, kwargs)) if id(x) in self._source}
        if len(sources) == 1 and (packet in _SAME or any(r.alias_info for r in func._schema.returns)):
            for x in filter(_is_whole, pytree.tree_leaves(result)):
                self._source[id(x)] = next(iter(sources))
                self._alive.append(x)
        return result

    def _look_up(self, index: Tensor, rows: int) -> None:
        number = self._source.get(id(index))
        if number is None or not index.numel():
            return
        given = int(self.inputs[number].flatten()[0])
        least, most = max(0, given - int(index.min())), given + rows - 1 - int(index.max())
        known = self.spans.get(number, Span(least, most))
        self.spans[number] = Span(max(least, known.least), min(most, known.most))


def _counts_up(x: Any) -> bool:
    """Whether it holds 0, 1, 2, ..., more than two numbers along one axis."""
    return _is_whole(x) and x.numel() == max(x.shape, default=0) > 2 and bool((x.flatten().diff() == 1).all() and
                                                                             x.flatten()[0] == 0)  # fmt: skip


def _is_whole(x: Any) -> bool:
    return isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex() and x.dtype is not torch.bool
