"""aim: a goal -> the plan that meets it. Where latency is limited, the whole small model is measured, and the search
corrects itself until what was measured meets the limit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slim_model.allocate import meet
from slim_model.allocations import TIMED, Curve, allocation_of
from slim_model.budget import Plan, least_of, plan_of
from slim_model.cost import Meter
from slim_model.couple import Coupling
from slim_model.damage import damage
from slim_model.data import Data
from slim_model.errors import BudgetError
from slim_model.export import to_onnx
from slim_model.layers import layers_of
from slim_model.measure import interleave, quiet
from slim_model.prices import Goal, Price
from slim_model.profile import ModelLatency, Point, model_latency, setting_of
from slim_model.runtimes import Runtime, usable
from slim_model.sensitivity import plot, scan
from slim_model.shrink import shrink
from slim_model.survey import Survey, survey
from slim_model.trace import Graph, first_of

_TRIALS = 8
_INSIDE = 0.98
"""Of the limit, so that noise does not end above it."""
_ROUNDS, _SECONDS = 80, 10.0


@dataclass(frozen=True, slots=True)
class Allocation:
    """How the widths are chosen. ``scan`` is the file of a sensitivity scan."""

    name: str
    multiple_of: int
    scan: Path | None = None

    @property
    def kind(self) -> str:
        """The name without its options."""
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Met:
    """What was limited, in the unit of its price: the limit, the dense model, the small one. ``trials``: where latency
    was limited, (predicted, measured) ms of each plan that was tried, the last one taken."""

    of: str
    allocate: str
    limit: float
    dense: float
    reached: float
    trials: tuple[tuple[float, float], ...] = ()


Progress = Callable[[str], None]
Search = Callable[[Callable[[np.ndarray], float], float], Plan]


def aim(
    coupling: Coupling,
    scores: list[Tensor],
    goal: Goal,
    allocation: Allocation,
    data: Data | None,
    *,
    device: str = "cpu",
    threads: int = 1,
    progress: Progress = lambda stage: None,
) -> tuple[Plan, Met]:
    """Raises BudgetError with the least that can be reached."""
    curves = _curves(coupling, scores, allocation, data, progress)
    losses: Sequence[Tensor] = ()
    layers: ModelLatency | None = None
    if allocation.kind == "damage":
        assert data is not None  # the recipe asks for it
        losses = damage(coupling, scores, data, said=progress)
    if allocation.kind in TIMED or goal.price.of is None:
        layers = _layer_by_layer(coupling, _runtime(device), threads, progress)
    progress("choosing widths")

    def search(of: Callable[[np.ndarray], float], limit: float) -> Plan:
        return meet(
            *(coupling, scores, goal.price, of, limit),
            allocate=allocation.name,
            multiple_of=allocation.multiple_of,
            curves=curves,
            losses=losses,
            latency=layers.ms if layers else None,
        )

    if goal.price.of is None:
        assert layers is not None
        return _measured(coupling, scores, goal, search, allocation, layers, device, threads, progress)
    of = partial(goal.price.of, Meter(coupling))
    if goal.price.file:
        return _written(coupling, goal, search, of, allocation.name, device)
    dense = of(None)
    limit, price = goal.of(dense), goal.price
    plan = search(of, limit)
    reached = of(plan.keep)
    if reached < limit * (1 - price.close):
        raise _too_coarse(price, limit, reached)
    return plan, Met(price.name, allocation.name, limit, dense, reached)


def _too_coarse(price: Price, limit: float, reached: float) -> BudgetError:
    return BudgetError(
        f"{price.name} cannot come close to {price.say(limit)}: these layers have so few channels that "
        f"{price.say(reached)} is the nearest below. Ask for that."
    )


def _curves(
    coupling: Coupling, scores: list[Tensor], allocation: Allocation, data: Data | None, progress: Progress
) -> Sequence[Curve]:
    """A picture of the scan lies beside its file, where matplotlib is installed."""
    if allocation.kind != "sensitivity":
        return ()
    assert data is not None  # the recipe asks for it
    measure = allocation_of(allocation.name).keywords.get("measure", "error")
    found = scan(coupling, scores, data, measure=measure, path=allocation.scan, progress=progress)
    if allocation.scan and find_spec("matplotlib"):
        plot(found, allocation.scan.with_suffix(".svg"))
    return found.curves


# -- the file -------------------------------------------------------------------------------------------------------


def _written(
    coupling: Coupling, goal: Goal, search: Search, of: Callable[[np.ndarray | None], float], allocate: str, device: str
) -> tuple[Plan, Met]:
    """A file holds more than tensors, and less where norms are folded into layers: what it has above them is read from
    a file written for each plan."""
    with tempfile.TemporaryDirectory() as folder:
        dense = _size(coupling.graph, Path(folder), device)
        limit, above = goal.of(dense), dense - of(None)
        best: tuple[float, Plan] | None = None
        for _ in range(_TRIALS):
            plan = search(lambda keep, above=above: of(keep) + above, limit)  # type: ignore[misc]
            size = _size(shrink(coupling, plan.keep)[0], Path(folder), device)
            if size <= limit and (best is None or size > best[0]):
                best = size, plan
            if best and best[0] >= limit * (1 - goal.price.close):
                break
            above = size - of(plan.keep)
    if best is None:
        raise BudgetError(f"bytes: no file of at most {goal.price.say(limit)} came out; the last has {size:,} bytes.")
    if best[0] < limit * (1 - goal.price.close):
        raise _too_coarse(goal.price, limit, best[0])
    return best[1], Met("bytes", allocate, limit, dense, best[0])


def _size(graph: Graph, folder: Path, device: str) -> int:
    path = folder / "model.onnx"
    to_onnx(graph, path, opset=None, metadata={}, device=device)
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("model.onnx"))


# -- latency --------------------------------------------------------------------------------------------------------


def _measured(
    coupling: Coupling,
    scores: list[Tensor],
    goal: Goal,
    search: Search,
    allocation: Allocation,
    layers: ModelLatency,
    device: str,
    threads: int,
    progress: Progress,
) -> tuple[Plan, Met]:
    row = _runtime(device)
    narrowest = partial(least_of, coupling, scores, multiple_of=allocation.multiple_of)
    with _Whole(row, coupling.graph, threads, progress) as whole:
        limit = goal.of(whole.dense_ms)
        model = layers.anchored(whole.dense_ms)
        if limit >= whole.dense_ms:
            raise BudgetError(
                f"latency is {whole.dense_ms:.2f} ms as it is, no more than the {limit:.2f} ms allowed "
                f"({row.name}, {threads} thread{'s' * (threads > 1)})."
            )
        trials: list[tuple[float, float]] = []
        points: list[Point] = [(whole.dense_ms, None)]
        best: tuple[float, Plan] | None = None
        for _ in range(_TRIALS):
            plan, model = _searched(coupling, narrowest, search, model, limit, whole, points)
            predicted, ms = model.ms(plan.keep), whole.ms(coupling, plan)
            points.append((ms, plan.keep))
            trials.append((round(predicted, 4), round(ms, 4)))
            if ms <= limit and (best is None or ms > best[0]):
                best = ms, plan
            if best and best[0] >= limit * (1 - goal.price.close):
                return best[1], Met("latency", allocation.name, limit, whole.dense_ms, best[0], tuple(trials))
            model = model.corrected(points, limit)
    told = ", ".join(f"{ms:.2f}" for _, ms in trials)
    raise BudgetError(
        f"latency: no plan came within {goal.price.close:.0%} below {limit:.2f} ms; what was measured: {told} ms. "
        "Quieten the machine, or try another --target, --multiple-of or --allocate."
    )


def _runtime(device: str) -> Runtime:
    return usable("onnxruntime" if device == "cpu" else "onnxruntime-cuda")


def _layer_by_layer(coupling: Coupling, row: Runtime, threads: int, progress: Progress) -> ModelLatency:
    """What the table says of the model, once it holds all of its layers."""
    setting = setting_of(row, threads=threads)
    return model_latency(survey(layers_of(coupling), Survey(row, setting), progress), coupling)


def _searched(
    coupling: Coupling,
    narrowest: Callable[[Callable[[np.ndarray], float]], np.ndarray],
    search: Search,
    model: ModelLatency,
    limit: float,
    whole: _Whole,
    points: list[Point],
) -> tuple[Plan, ModelLatency]:
    """Where the table says that the limit is out of reach, the smallest model of all is measured, and is one more of
    the ``points``."""
    try:
        return search(model.ms, limit * _INSIDE), model
    except BudgetError as refused:
        keep = narrowest(model.ms)
        ms = whole.ms(coupling, plan_of(coupling, keep))
        if ms > limit:
            raise BudgetError(
                f"latency cannot come down to {limit:.2f} ms: with every layer that may lose some as narrow as can be, "
                f"{ms:.2f} ms were measured, of {whole.dense_ms:.2f} ms."
            ) from refused
        points.append((ms, keep))
        model = model.corrected(points, limit)
        return search(model.ms, limit * _INSIDE), model


class _Whole:
    """Measures whole models in turns with the dense one, in ms (medians)."""

    def __init__(self, row: Runtime, graph: Graph, threads: int, progress: Progress) -> None:
        self.row, self.graph, self.threads, self.progress = row, graph, threads, progress

    def __enter__(self) -> _Whole:
        self.folder = tempfile.TemporaryDirectory()
        self.inputs = [x for x in first_of(self.graph) if isinstance(x, Tensor)]
        self.progress("timing the dense model")
        self.dense = self._written(self.graph, "dense")
        self.dense_ms = self._medians(self.dense)[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def ms(self, coupling: Coupling, plan: Plan) -> float:
        self.progress("timing the small model")
        small, _ = shrink(coupling, plan.keep)
        return self._medians(self.dense, self._written(small, "small"))[1]

    def _written(self, graph: Graph, name: str) -> Path:
        path = Path(self.folder.name) / f"{name}.onnx"
        to_onnx(graph, path, opset=None, metadata={}, device=self.row.device)
        return path

    def _medians(self, *paths: Path) -> list[float]:
        with quiet(), torch.no_grad():
            runs = [self.row.prepare(path, self.inputs, self.threads) for path in paths]
            return [float(np.median(ms)) for ms in interleave(*runs, rounds=_ROUNDS, budget_s=_SECONDS)]
