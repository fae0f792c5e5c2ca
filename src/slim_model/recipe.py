"""What the user asked for: one group of options a stage, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slim_model.budget.allocations import allocation_of
from slim_model.budget.options import BudgetOptions
from slim_model.coupling.options import CouplingOptions
from slim_model.data.options import DataOptions
from slim_model.effort import EffortOptions, decided
from slim_model.errors import InputError
from slim_model.factoring.options import FactoringOptions
from slim_model.graph.options import TracingOptions
from slim_model.measuring.options import MeasuringOptions
from slim_model.options import group_of, option
from slim_model.quantizing.options import QuantizingOptions
from slim_model.ranking.criteria import Criterion, check_needs, ranking_of
from slim_model.ranking.options import RankingOptions
from slim_model.recovery.options import RecoveryOptions
from slim_model.training.options import TrainingOptions

_SEEDS = 2**32
"""As many as all take that draw: PyTorch more, NumPy's generators, which Optuna draws from, no others."""


@dataclass(frozen=True, slots=True)
class Gates:
    """What the small model must reach, or it is not handed out. ``max_drop``: the accuracy that may be lost, as a share
    (0.01 is one point). ``min_speedup``: the least speed-up in onnxruntime, lower end of its 95 % interval."""

    max_drop: float | None = option(
        None,
        "Exit code 3, and no OUT, where more accuracy than that is lost; 0.01 is one point.",
        kind=float,
        metavar="X",
        basic=True,
    )
    min_speedup: float | None = option(
        None,
        "Exit code 3, and no OUT, where it is not that much faster in onnxruntime (lower end of the interval).",
        kind=float,
        metavar="X",
    )

    def __post_init__(self) -> None:
        if self.max_drop is not None and not self.max_drop < 1:  # NaN is below nothing
            raise InputError(f"max_drop {self.max_drop:g} allows any loss: it is a share, and 0.01 is one point.")
        if self.min_speedup is not None and not 0 < self.min_speedup < math.inf:
            raise InputError(f"min_speedup {self.min_speedup:g} is no speed-up; it is a number above 0, such as 1.5.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The options of a run, one group a stage. ``Recipe.of(ratio=0.5, criterion="l1", ...)`` takes them by name.

    ``seed``: for whatever is random.
    """

    effort: EffortOptions = field(default_factory=EffortOptions)
    tracing: TracingOptions = field(default_factory=TracingOptions)
    coupling: CouplingOptions = field(default_factory=CouplingOptions)
    ranking: RankingOptions = field(default_factory=RankingOptions)
    factoring: FactoringOptions = field(default_factory=FactoringOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    data: DataOptions = field(default_factory=DataOptions)
    recovery: RecoveryOptions = field(default_factory=RecoveryOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    quantizing: QuantizingOptions = field(default_factory=QuantizingOptions)
    measuring: MeasuringOptions = field(default_factory=MeasuringOptions)
    gates: Gates = field(default_factory=Gates)
    seed: int = option(0, "For whatever is random.", least=0, most=_SEEDS - 1)

    @classmethod
    def of(cls, ratio: float | None = None, criterion: str | Criterion | None = None, **options: Any) -> Recipe:
        """The recipe with these options, each given to the group that has it. Raises InputError where a value is
        wrong, TypeError where no group knows the name."""
        given = {"ratio": ratio, "criterion": criterion} | options
        groups = {name: group_of(kind, given) for name, kind in GROUPS.items()}
        known = {name for group in groups.values() for name in _names_of(group)} | {"seed"}
        if unknown := [name for name in given if name not in known]:
            raise TypeError(f"there is no option '{unknown[0]}'. There are: {', '.join(sorted(known))}.")
        return cls(**groups, seed=given.get("seed", 0))

    @property
    def groups(self) -> list[Any]:
        """The groups of options, in the order of the stages."""
        return [getattr(self, name) for name in GROUPS]

    def options(self) -> dict[str, Any]:
        """Every option by its name."""
        named = {name: getattr(group, name) for group in self.groups for name in _names_of(group)}
        return named | {"seed": self.seed}

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with other values of these options."""
        return Recipe.of(**changed(self.options(), changes))

    def decided(self) -> Recipe:
        """The same recipe with a value for everything that was left to ``effort``."""
        ratio = {} if self.budget.target else {"ratio": self.budget.share_removed}
        return self.but(**ratio, **decided(self.options()))

    @property
    def varies_pictures(self) -> bool:
        """Whether anything is trained on samples as ``augment`` varies them."""
        return self.training.finetune > 0 or self.recovery.recover == "network"

    def idle(self) -> dict[str, str]:
        """Options that were given and do nothing, each with what it waits for."""
        given, plain = self.options(), Recipe().options()
        waiting = {name: needed for names, needed, there in _WAITING if not there(self) for name in names}
        return {name: needed for name, needed in waiting.items() if given[name] != plain[name]}

    def __post_init__(self) -> None:
        """Options of one group that ask for another. What one group says by itself it has checked."""
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed {self.seed} is not between 0 and {_SEEDS - 1}.")
        if self.data.data is None:
            self._check_without_data()
        if self.coupling.attention != "width" and self.budget.engine != "slim":
            raise InputError(
                f"attention '{self.coupling.attention}' needs the engine slim; leave out --engine {self.budget.engine}."
            )
        if self.coupling.attention == "both" and not self.budget.counts_channels:
            raise InputError("attention 'both' takes only a ratio of channels; other goals take width or heads.")
        if self.factoring.low_rank:
            self._check_low_rank()
        if self.gates.min_speedup is not None and not self.measuring.bench:
            raise InputError("--min-speedup needs the latency; leave out --no-bench.")

    def _check_low_rank(self) -> None:
        """Ranks go in one pass, by our own engine."""
        other = {
            f"engine '{self.budget.engine}', which knows no ranks": self.budget.engine != "slim",
            f"iterations {self.budget.iterations}; ranks go in one round": self.budget.iterations > 1,
            "attention 'both', which takes two passes; give width or heads": self.coupling.attention == "both",
        }
        if asked := next((text for text, is_so in other.items() if is_so), None):
            raise InputError(f"--low-rank does not go with {asked}.")

    def _check_without_data(self) -> None:
        check_needs(ranking_of(self.ranking.ranked_by), None, self.ranking.loss)
        if asked := self.recovery.needs_data:
            raise InputError(f"{asked} needs data, and none was given: add --data SPEC, or data=batches in Python.")
        if (allocation := allocation_of(self.budget.allocation)).needs_data:
            raise InputError(f"allocate '{allocation.kind}' measures on data: add --data SPEC, or data= in Python.")
        if self.training.finetune:
            raise InputError("fine-tuning needs data: give --data, or data= in Python.")
        if self.quantizing.int8:
            raise InputError("int8 is calibrated on data, and none was given: add --data SPEC.")
        if self.gates.max_drop is not None:
            raise InputError("max_drop needs data with labels to read the accuracy from: --data, or data= in Python.")


_WAITING: tuple[tuple[tuple[str, ...], str, Callable[[Recipe], bool]], ...] = (
    (
        ("optimizer", "lr", "distill", "alpha", "temperature", "hints", "dropout", "precision"),
        "--finetune",
        lambda r: r.training.finetune > 0,
    ),
    (("augment",), "--finetune or --recover network", lambda r: r.varies_pictures),
    (("int8_form", "int8_anyway"), "--int8", lambda r: r.quantizing.int8),
    (("scan",), "--allocate sensitivity", lambda r: allocation_of(r.budget.allocation).kind == "sensitivity"),
)
"""Options that do nothing alone, what they wait for, and whether that is there. They are no error: in a sweep over
``finetune`` one point may be without."""
_INSTEAD = {
    "target": ("ratio", "of"), "ratio": ("target",), "of": ("target",),
    "allocate": ("scope",), "scope": ("allocate",), "inputs": ("example",), "example": ("inputs",),
}  # fmt: skip
"""Options that exclude each other. Two in one place are refused; what overrides one takes the other away."""


def changed(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``options``, by name, with ``changes``; without what those exclude, unless it is among them."""
    given = [name for name, value in changes.items() if value is not None]
    gone = {other for name in given for other in _INSTEAD.get(name, ())} - set(given)
    return {name: value for name, value in options.items() if name not in gone} | dict(changes)


def _names_of(group: Any) -> list[str]:
    """Of its fields; those for Python alone are among them."""
    return [field.name for field in dataclasses.fields(group)]


GROUPS: dict[str, Any] = {
    "effort": EffortOptions,
    "tracing": TracingOptions,
    "coupling": CouplingOptions,
    "ranking": RankingOptions,
    "factoring": FactoringOptions,
    "budget": BudgetOptions,
    "data": DataOptions,
    "recovery": RecoveryOptions,
    "training": TrainingOptions,
    "quantizing": QuantizingOptions,
    "measuring": MeasuringOptions,
    "gates": Gates,
}
"""The groups of a recipe, by the name of their field."""
