"""Sizes of free axes, other than the example's, that a graph runs on: it is compared with the model there, too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from slim_model.graph.fixed_axes import first_failure
from slim_model.graph.graph import Graph, shapes_at, source_line
from slim_model.graph.other_inputs.other_values import fitted
from slim_model.graph.tensor_trees import batch_of

_STEPS = (1, 2, 4, 8, 16, 32, 64)


def other_sizes(graph: Graph) -> tuple[dict[str, int], dict[str, str]]:
    """Another size of each free axis but the batch, all at once; and of each the operator that did not take the first
    one that was tried, where one did not.

    A net that halves a picture and doubles it again takes even sides alone: steps of 1, 2, 4, ... are tried, so that a
    square becomes none. An axis for which no other size runs is not among the first.
    """
    sizes: dict[str, int] = {}
    misfits: dict[str, str] = {}
    batch = graph.free.batch()
    for number, symbol in enumerate(name for name in graph.free.example if name not in batch):
        for size in _candidates(graph, symbol, first=1 if number % 2 else -1):
            failed = first_failure(graph, resized(graph, {**sizes, symbol: size}))
            if failed is None:
                sizes[symbol] = size
                break
            misfits.setdefault(symbol, f"{failed.target} takes no {size} at {source_line(failed) or failed.name}")
    return sizes, misfits


def notes_on_sizes(graph: Graph, misfits: Mapping[str, str]) -> tuple[str, ...]:
    """What the user should know of the sizes that ``graph`` takes."""
    some = [f"not every {symbol} is taken: {why}; {graph.free.others[symbol]} fits" for symbol, why in misfits.items()]
    for symbol in graph.free.others:
        least, most = graph.free.ranges[symbol]
        if (least, most) != (2, math.inf):
            some.append(f"{symbol} may be {least:.0f} {'or more' if most == math.inf else f'to {most:.0f}'}")
    return tuple(some)


def _candidates(graph: Graph, symbol: str, first: int) -> Iterator[int]:
    size, (least, most) = graph.free.example[symbol], graph.free.ranges[symbol]
    steps = [*(sign * step for step in _STEPS for sign in (first, -first)), size, -(size // 2)]
    return (size + step for step in steps if least <= size + step <= most)


def batch_that_fails(graph: Graph) -> str:
    """Which operator runs on no batch of one, or of one sample more than the example, and where; '' where none does.

    A model that folds clips of four frames into its batch traces with a free batch, and takes multiples of four alone.
    """
    for batch in (1, batch_of(graph.inputs) + 1):
        failed = first_failure(graph, resized(graph, dict.fromkeys(graph.free.batch(), batch)))
        if failed is not None:
            return f"{failed.target} takes no batch of {batch} at {source_line(failed) or failed.name}"
    return ""


def resized(graph: Graph, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """The example inputs, cut or repeated to the shapes that they have where free axes have these ``sizes``."""
    return tuple(
        fitted(x, shape) if isinstance(x, Tensor) else x
        for x, shape in zip(graph.inputs, shapes_at(graph, sizes), strict=True)
    )
