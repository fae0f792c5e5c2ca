"""The ways to say which layers give how much, by name. One row each in ``ALLOCATIONS``; functions in ``methods``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from slim_model.errors import InputError
from slim_model.late import Late
from slim_model.named_options import read_options


@dataclass(frozen=True, slots=True)
class Allocation:
    """``method(problem)`` returns how many channels each group keeps. ``needs_data``: it measures the model on the
    user's samples. ``timed``: it asks for the latency of layers."""

    name: str
    method: Callable[..., Any]
    needs_data: bool = False
    timed: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        """The name without its options."""
        return self.name.partition(":")[0]

    def option(self, name: str, default: Any) -> Any:
        """What the user gave for the option ``name`` of the method, else ``default``."""
        return dict(self.options).get(name, default)


def _row(name: str, function: str, *, needs_data: bool = False, timed: bool = False) -> Allocation:
    return Allocation(name, Late(f"budget.methods:{function}"), needs_data, timed)


ALLOCATIONS: dict[str, Allocation] = {
    row.name: row
    for row in (
        _row("uniform", "uniform"),
        _row("global", "one_ranking"),
        _row("isomorphic", "isomorphic"),
        _row("judged", "uniform", needs_data=True),
        _row("greedy", "greedy"),
        _row("product", "product"),
        _row("damage", "damage", needs_data=True),
        _row("sensitivity", "sensitivity", needs_data=True),
        _row("energy", "energy"),
        _row("knapsack", "knapsack"),
        _row("latency", "latency", timed=True),
    )
}
_WORDS = {"normalise": ("mean", "lamp", "none"), "measure": ("error", "accuracy")}


def allocation_of(text: str) -> Allocation:
    """The row for ``NAME`` or ``NAME:option=value,...``, with these options bound to its method."""
    name, _, rest = text.partition(":")
    if name not in ALLOCATIONS:
        raise InputError(f"no allocation is called '{name}'. There are: {', '.join(ALLOCATIONS)}.")
    row = ALLOCATIONS[name]
    options = read_options("allocation", name, row.method, rest, _WORDS)
    method = partial(row.method, **options) if options else row.method
    return Allocation(text, method, row.needs_data, row.timed, tuple(options.items()))
