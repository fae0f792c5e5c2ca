"""What the user asked for, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slim_model.budget.engines import ENGINES
from slim_model.budget.goal import Goal
from slim_model.budget.methods import MEASURED, allocation_of
from slim_model.budget.ratio import SCOPES
from slim_model.cost.latency_store import measured_step
from slim_model.cost.prices import price_of, read_target
from slim_model.coupling.attention_heads import ATTENTION
from slim_model.data.augmentation import Transform
from slim_model.data.loss import Loss
from slim_model.errors import InputError
from slim_model.measuring.machine import vector_width_channels
from slim_model.ranking.criteria import Criterion, ranking_of
from slim_model.ranking.score import check_needs
from slim_model.recovery import LEVELS
from slim_model.training.options import check_training


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the user asked for. The command line and the Python call have these fields as options.

    ``ratio``: fraction removed of what ``of`` names: channels, or a price (``cost.prices``). ``target``: a limit
    in its place, such as ``"macs=1.0G"``. ``allocate``: which layers give how much (``budget.methods``); default:
    as ``scope`` says. ``scan``: the file of a sensitivity scan. ``multiple_of``: layer widths are rounded to it;
    ``"auto"`` takes the width step of this machine. ``keep``: glob patterns of layers that are not touched. ``data``:
    for what needs it, what ``slim_model.data.open_data`` takes, of which ``samples`` are read in batches of ``batch``,
    normalised by ``mean`` and ``std``; accuracy is read from ``test_samples`` of its test part. ``loss``: ``(outputs,
    labels)`` -> one for each sample, or their mean; default cross entropy. ``engine``: whose pruner turns scores into
    channels. ``attention``: what goes where channels are viewed as heads: the same places of every head (``width``),
    whole ``heads``, or both, first heads. ``device`` and ``threads``: where latency is measured.

    ``recover``: how other weights make up for what was removed, without labels (``slim_model.recovery``); None:
    ``affine`` where there is data. ``recalibrate``: then count BatchNorm's statistics anew. ``finetune``: epochs of
    training at the highest rate ``lr``, on pictures varied by ``augment``, on ``alpha`` of what the dense model says at
    ``temperature`` and the rest of what labels say; ``distill=False``: labels alone; ``hints``: how much its values
    inside weigh; ``dropout``: the share of the model's own dropout rates that stays. ``iterations``: rounds of removal,
    each followed by recovery and training. ``max_drop``: how much accuracy may be lost, as a share.
    """

    ratio: float = 0.5
    criterion: str | Criterion = "l1"
    scope: Literal["local", "global"] = "local"
    multiple_of: int | Literal["auto"] = "auto"
    keep: tuple[str, ...] = ()
    seed: int = 0
    static_batch: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    data: Any = None
    samples: int = 1024
    test_samples: int = 1000
    batch: int = 64
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    loss: Loss | None = None
    engine: Literal["slim", "torch-pruning"] = "slim"
    attention: Literal["width", "heads", "both"] = "width"
    of: str = "channels"
    target: str | None = None
    allocate: str | None = None
    scan: Path | None = None
    threads: int = 1
    recover: Literal["none", "bias", "affine", "full", "blocks", "data-free"] | None = None
    recalibrate: bool = False
    finetune: int = 0
    iterations: int = 1
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = None
    augment: str | Transform = "auto"
    distill: bool = True
    alpha: float = 0.5
    temperature: float = 2.0
    hints: float = 0.0
    dropout: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        if not 0 < self.ratio < 1:
            raise InputError(
                f"ratio {self.ratio} is not between 0 and 1. It is the fraction of channels removed: 0.5 halves widths."
            )
        if self.scope not in SCOPES:
            raise InputError(f"scope '{self.scope}' is unknown; it is one of {', '.join(SCOPES)}.")
        ranking = ranking_of(self.criterion)
        if self.data is None:
            check_needs(ranking, None, self.loss)
            self._needs_no_data()
        if self.recover not in (None, *LEVELS):
            raise InputError(f"recover '{self.recover}' is unknown; it is one of {', '.join(LEVELS)}.")
        if self.engine not in ENGINES:
            raise InputError(f"engine '{self.engine}' is unknown; it is one of {', '.join(ENGINES)}.")
        if self.attention not in ATTENTION:
            raise InputError(f"attention '{self.attention}' is unknown; it is one of {', '.join(ATTENTION)}.")
        if self.attention != "width" and self.engine != "slim":
            raise InputError(f"attention '{self.attention}' needs the engine slim; leave out --engine {self.engine}.")
        self._check_budget()
        if self.threads < 1:
            raise InputError(f"threads {self.threads} is not a number of threads; it starts at 1.")
        if self.multiple_of != "auto" and (not isinstance(self.multiple_of, int) or self.multiple_of < 1):
            raise InputError(f"multiple_of {self.multiple_of!r} is not 'auto' or a whole number from 1.")

        check_training(self)
        self._check_rounds()
        if self.max_drop is not None and self.data is None:
            raise InputError("max_drop needs data with labels to read the accuracy from: --data, or data= in Python.")

    def _check_rounds(self) -> None:
        if self.iterations < 1:
            raise InputError(f"iterations {self.iterations} is not a number of rounds from 1.")
        if self.iterations > 1 and (self.engine != "slim" or self.target is not None):
            other = f"engine '{self.engine}'" if self.engine != "slim" else f"target '{self.target}'"
            raise InputError(
                f"iterations {self.iterations} takes a ratio and the engine slim; {other} takes one round."
            )

    def _needs_no_data(self) -> None:
        if self.recalibrate or self.recover not in (None, "none", "data-free"):
            asked = "recalibrate" if self.recalibrate else f"recover {self.recover}"
            raise InputError(f"{asked} needs data, and none was given: add --data SPEC, or data=batches in Python.")

    def _check_budget(self) -> None:
        price_of(self.of)
        if self.target is not None and self.of not in ("channels", read_target(self.target)[0].name):
            raise InputError(f"of '{self.of}' and target '{self.target}' limit different things. Give one of them.")
        if self.allocate is not None:
            allocation_of(self.allocate)
            name = self.allocate.partition(":")[0]
            if name in MEASURED and self.data is None:
                raise InputError(f"allocate '{name}' measures on data: add --data SPEC, or data= in Python.")
        if self.goal is not None and self.engine != "slim":
            raise InputError(f"engine '{self.engine}' takes only a ratio of channels, no other goal.")
        if self.goal is not None and self.attention == "both":
            raise InputError("attention 'both' takes only a ratio of channels; other goals take width or heads.")

    @property
    def goal(self) -> Goal | None:
        """None: the ratio of channels, in every layer or over all."""
        if self.target is not None:
            price, limit = read_target(self.target)
            return Goal(price, self.ratio, limit)
        if self.of == "channels" and self.allocate in (None, "uniform", "global"):
            return None
        return Goal(price_of(self.of), self.ratio)

    @property
    def allocation(self) -> str:
        return self.allocate or {"local": "uniform", "global": "global"}[self.scope]

    @property
    def block(self) -> int:
        """``"auto"``: the step that ``slim-model profile`` learned on this machine, else what its kernels suggest."""
        self._check_budget()
        if self.multiple_of != "auto":
            return int(self.multiple_of)
        return measured_step(self.device) or vector_width_channels(self.device)
