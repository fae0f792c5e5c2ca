"""How much is to go, and which layers give how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_model.budget.allocations import ALLOCATIONS, allocation_of
from slim_model.cost.prices import PRICES, price_of, read_target
from slim_model.errors import InputError
from slim_model.late import Late
from slim_model.options import check_choices, option, read_step

SCOPES = {"local": "uniform", "global": "global"}
"""``--scope`` is a shorter word for two allocations."""

RATIO = 0.5
"""The fraction removed where nothing says how much."""

ENGINES: dict[str, Callable[..., Any]] = {
    "slim": Late("budget.search:plan_for"),
    "torch-pruning": Late("budget.torch_pruning:plan_by_torch_pruning"),
}
"""Who turns scores into channels to keep; all stand behind the same proof."""


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """``ratio``: fraction removed of what ``of`` names: channels, or a price (``cost.prices``); None: ``RATIO``.
    ``target``: a limit in its place, such as ``"macs=1.0G"``. ``allocate``: which layers give how much
    (``budget.allocations``); default: as ``scope`` says, which is a shorter word for two of them. ``scan``: the file of
    a sensitivity scan. ``multiple_of``: layer widths are rounded to it; ``"auto"`` takes the width step of this
    machine. ``engine``: whose pruner turns scores into channels.
    ``iterations``: rounds of removal, each followed by recovery and training. ``depth``: whole layers that go as well,
    where a folder of transformers is written; ``residual``: hidden channels as well, there."""

    ratio: float | None = option(
        None,
        "Fraction removed: of the channels, or of what --of names. Default: 0.5, where no --target is given.",
        kind=float,
        metavar="X",
        basic=True,
    )
    of: str = option("channels", "What --ratio is a fraction of.", metavar="|".join(PRICES))
    target: str | None = option(
        None,
        "A limit in place of --ratio: latency=8ms, macs=1.0G, params=2M, bytes=5MB, ...",
        metavar="NAME=AMOUNT",
        basic=True,
    )
    allocate: str | None = option(
        None,
        f"Which layers give how much: {', '.join(ALLOCATIONS)}. Default: uniform, or global with --scope global.",
        metavar="NAME[:OPTION=VALUE,...]",
    )
    scan: Path | None = option(
        None,
        "With --allocate sensitivity: where its scan is kept, to go on with or use again.",
        kind=Path,
        metavar="F.jsonl",
    )
    scope: str = option(
        "local", "local: the ratio in every layer; global: one ranking over all.", choices=tuple(SCOPES)
    )
    multiple_of: int | str = option(
        "auto",
        "Round widths to N; auto: the block of this machine's kernels.",
        metavar="auto|N",
        read=read_step,
    )
    engine: str = option("slim", "Whose pruner turns the ranking into channels.", choices=tuple(ENGINES))
    iterations: int = option(
        1, "Rounds: in each a part of the ratio goes, and the rest is trained.", metavar="K", least=1
    )
    depth: int = option(
        0, "Of a folder of transformers: also whole layers, those that do least to the text.", metavar="K", least=0
    )

    residual: bool = option(
        False,
        "Of a folder of transformers: hidden_size becomes smaller, too; it shares --ratio with the MLPs.",
        negatable=False,
    )

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise InputError(f"depth {self.depth} is not a number of layers from 0.")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise InputError(
                f"ratio {self.ratio} is not between 0 and 1. It is the fraction of channels removed: 0.5 halves widths."
            )
        check_choices(self)
        price_of(self.of)
        if self.target is not None and self.ratio is not None:
            raise InputError(
                f"ratio {self.ratio:g} and target '{self.target}' both say how much goes. Give one of them."
            )
        if self.target is not None and self.of not in ("channels", read_target(self.target)[0].name):
            raise InputError(f"of '{self.of}' and target '{self.target}' limit different things. Give one of them.")
        if self.allocate is not None:
            self._check_allocation(self.allocate)
        if self.multiple_of != "auto" and (not isinstance(self.multiple_of, int) or self.multiple_of < 1):
            raise InputError(f"multiple_of {self.multiple_of!r} is not 'auto' or a whole number from 1.")
        if self.engine != "slim" and not self.counts_channels:
            raise InputError(f"engine '{self.engine}' takes only a ratio of channels, no other goal.")
        self._check_rounds()

    def _check_allocation(self, name: str) -> None:
        kind = allocation_of(name).kind
        if self.scope != "local" and kind != SCOPES[self.scope]:
            raise InputError(
                f"scope '{self.scope}' and allocate '{name}' both say which layers give how much. Give one of them."
            )

    def _check_rounds(self) -> None:
        if self.iterations < 1:
            raise InputError(f"iterations {self.iterations} is not a number of rounds from 1.")
        if self.iterations > 1 and (self.engine != "slim" or self.target is not None):
            other = f"engine '{self.engine}'" if self.engine != "slim" else f"target '{self.target}'"
            raise InputError(
                f"iterations {self.iterations} takes a ratio and the engine slim; {other} takes one round."
            )

    @property
    def share_removed(self) -> float:
        """The ratio, whether it was given or not."""
        return RATIO if self.ratio is None else self.ratio

    @property
    def allocation(self) -> str:
        """The name of the allocation, whichever way it was asked for."""
        return self.allocate or SCOPES[self.scope]

    @property
    def counts_channels(self) -> bool:
        """Whether a share of channels is to go, in every layer or over all, and nothing else is limited."""
        return self.target is None and self.of == "channels" and self.allocation in SCOPES.values()
