"""The shape of a row of RUNTIMES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

TimedCall = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Operator:
    """What all operators of one kind took in one run, of how many nodes."""

    name: str
    nodes: int
    ms: float


@dataclass(frozen=True, slots=True)
class Runtime:
    """One row of RUNTIMES.

    ``available()`` is None where the runtime can be used here, else the reason why not: "not installed: ..." with
    what to install, or what the machine lacks. ``prepare(artifact, inputs, threads)`` returns a closure that runs
    the artifact once and comes back when the result is there; it may set PyTorch's thread count, which ``measure``
    puts back. ``per_op(artifacts, inputs, threads)`` returns the operators of each, which run in turns; it is None
    where the runtime does not say what its operators take.
    """

    name: str
    device: Literal["cpu", "cuda"]
    artifact: Literal["onnx", "module"]
    """What ``prepare`` takes: the path of an ONNX file, or an ``nn.Module`` (or callable) in eval mode."""
    available: Callable[[], str | None]
    prepare: Callable[[Any, Sequence[Tensor], int], TimedCall]
    packages: tuple[str, ...]
    """Distributions that may have brought it: the first one found tells its version."""
    per_op: Callable[[Sequence[str | Path], Sequence[Tensor], int], list[list[Operator]]] | None = None


def by_kind(times: dict[str, tuple[str, float]]) -> list[Operator]:
    """node -> (kind, ms), as one Operator a kind, the costliest first."""
    kinds: dict[str, list[float]] = {}
    for kind, ms in times.values():
        kinds.setdefault(kind, []).append(ms)
    operators = [Operator(kind, len(each), sum(each)) for kind, each in kinds.items()]
    return sorted(operators, key=lambda operator: -operator.ms)
