"""A limit on latency -> a plan: whole small models are measured until one meets it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from slim_model.budget.goal import TRIALS, Met, Search, Task
from slim_model.budget.plan import Plan, least_of, plan_of
from slim_model.cost.counted import Pays, by_macs
from slim_model.cost.latency_model import ModelLatency, Point, model_latency
from slim_model.cost.latency_store import setting_of
from slim_model.cost.layer_models import layers_of
from slim_model.cost.measure_layers import MeasuringJob, measure_layers
from slim_model.coupling.coupling import Coupling
from slim_model.errors import BudgetError
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph, first_sample
from slim_model.graph.tensor_trees import tensors_among
from slim_model.measuring.runtimes import Runtime, usable_runtime
from slim_model.measuring.timing import interleave, without_gc
from slim_model.progress import Progress
from slim_model.quantizing.candidate import Candidates
from slim_model.quantizing.options import QuantizingOptions

_INSIDE = 0.98
"""Of the limit, so that noise does not end above it."""
_ROUNDS, _SECONDS = 80, 10.0


def plan_within_latency(task: Task, search: Search, layers: ModelLatency) -> tuple[Plan, Met]:
    """The plan whose whole model was measured within the limit, and closest below it.

    ``layers`` predicts latency; after each measured plan it is corrected. Where no plan comes close below the limit,
    the slowest one within it is taken. Raises BudgetError where none is within it.
    """
    goal, coupling, threads = task.goal, task.coupling, task.measuring.threads
    assert goal.price is not None
    row = runtime_on(task.measuring.device)
    narrowest = partial(least_of, coupling, task.scores, multiple_of=goal.block)
    quantizing = task.quantizing if task.as_int8 else None
    with _Whole(row, task.whole, threads, task.progress, quantizing) as whole:
        limit = goal.limit_of(whole.dense_ms)
        # The table adds up layers alone: it is scaled to the whole model, and corrected by each plan that is measured.
        model = layers.anchored(whole.full_ms)
        if limit >= whole.full_ms:
            raise BudgetError(
                f"latency is {_ms(whole.full_ms)} {'as int8' if quantizing else 'as it is'}, no more than the "
                f"{_ms(limit)} allowed ({row.name}, {threads} thread{'s' * (threads > 1)})."
            )
        trials: list[tuple[float, float]] = []
        points: list[Point] = [(whole.full_ms, None)]
        best: tuple[float, Plan] | None = None
        for _ in range(TRIALS):
            plan, model = _searched(task, narrowest, search, model, limit, whole, points)
            counted = plan.counted(coupling)
            predicted, ms = model.ms(counted), whole.ms(task, plan, layers.meter.pays)
            points.append((ms, counted))
            trials.append((round(predicted, 4), round(ms, 4)))
            # The slowest within the limit has the most channels.
            if ms <= limit and (best is None or ms > best[0]):
                best = ms, plan
            if best and best[0] >= limit * (1 - goal.price.close):
                break
            model = model.corrected(points, limit)
    if best is None:
        told = ", ".join(_ms(ms) for _, ms in trials)
        raise BudgetError(
            f"latency: no plan was measured within {_ms(limit)}; what was measured: {told}. "
            "Quieten the machine, or try another --target, --multiple-of or --allocate."
        )
    return best[1], Met("latency", goal.allocation.name, limit, whole.dense_ms, best[0], tuple(trials))


def _ms(ms: float) -> str:
    """Three digits that say something, also of microseconds: ``19.8 ms``, ``0.00123 ms``."""
    return f"{ms:.2f} ms" if ms >= 1 else f"{ms:.3g} ms"


def runtime_on(device: str) -> Runtime:
    return usable_runtime("onnxruntime" if device == "cpu" else "onnxruntime-cuda")


def time_layers(coupling: Coupling, row: Runtime, threads: int, progress: Progress) -> ModelLatency:
    """What the table says of the model, once it holds all of its layers."""
    setting = setting_of(row, threads=threads)
    return model_latency(measure_layers(layers_of(coupling), MeasuringJob(row, setting), progress), coupling)


def _searched(
    task: Task,
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
        # The table may be wrong where it says no: the smallest model of all decides, by measuring.
        keep = narrowest(model.ms)
        ms = whole.ms(task, plan_of(task.coupling, keep), model.meter.pays)
        if ms > limit:
            raise BudgetError(
                f"latency cannot come down to {_ms(limit)}: with every layer that may lose some as narrow as can be, "
                f"{_ms(ms)} were measured, of {_ms(whole.dense_ms)}."
            ) from refused
        points.append((ms, keep))
        model = model.corrected(points, limit)
        return search(model.ms, limit * _INSIDE), model


class _Whole:
    """Measures whole models in turns with the dense one, in ms (medians). ``dense_ms``: of the dense model in fp32;
    ``full_ms``: of what it is as the small one is written, int8 where ``quantizing`` is given."""

    def __init__(
        self, row: Runtime, graph: Graph, threads: int, progress: Progress, quantizing: QuantizingOptions | None = None
    ) -> None:
        self.row, self.graph, self.threads, self.progress, self.quantizing = row, graph, threads, progress, quantizing
        self.candidates: Candidates | None = None

    def __enter__(self) -> _Whole:
        self.folder = tempfile.TemporaryDirectory()
        self.inputs = tensors_among(first_sample(self.graph))
        self.progress("timing the dense model")
        self.dense = self._written(self.graph, "dense")
        # In turns with itself, as every other file is: alone it would find its values in the cache.
        self.dense_ms = self.full_ms = self._medians(self.dense, self.dense)[1]
        if self.quantizing:
            self.progress("timing the dense model as int8")
            only = self.quantizing.int8_form
            self.candidates = Candidates.of(self.dense, self.inputs, only, lambda files: self._medians(*files))
            self.full_ms = self._beside_dense(self._written(self.graph, "full"))
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def ms(self, task: Task, plan: Plan, pays: Pays = by_macs) -> float:
        self.progress("timing the small model")
        return self._beside_dense(self._written(task.small(plan, pays), "small"))

    def _beside_dense(self, path: Path) -> float:
        """ms, if the dense model took as long as when the limit was set: what slows the machine slows both."""
        dense_ms, ms = self._medians(self.dense, path)
        return ms * self.dense_ms / dense_ms

    def _written(self, graph: Graph, name: str) -> Path:
        path = Path(self.folder.name) / f"{name}.onnx"
        to_onnx(graph, path, opset=None, metadata={}, device=self.row.device)
        if self.candidates:
            self.candidates.make_int8(path)
        return path

    def _medians(self, *paths: Path) -> list[float]:
        with without_gc(), torch.no_grad():
            runs = [self.row.prepare(path, self.inputs, self.threads) for path in paths]
            return [float(np.median(ms)) for ms in interleave(*runs, rounds=_ROUNDS, budget_s=_SECONDS)]
