"""A limit on the bytes of the ONNX file -> a plan: files are written until one meets it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slim_model.budget.goal import TRIALS, Met, Search, Task, too_coarse
from slim_model.budget.plan import Plan
from slim_model.errors import BudgetError
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph, first_sample
from slim_model.graph.tensor_trees import tensors_among
from slim_model.quantizing.candidate import Candidates

_INT8_SHARE = 0.25
"""Of the bytes of a tensor, as int8."""
_METADATA = 500
"""Bytes at most of what an int8 file says of itself, which a candidate does not."""


def plan_within_file_size(
    task: Task, search: Search, price_of: Callable[[np.ndarray | None], float]
) -> tuple[Plan, Met]:
    """The plan whose ONNX file is within the limit, and closest below it. ``price_of``: bytes of the stored tensors.

    A file holds more than tensors, and less where norms are folded into layers: what it has above them is read from a
    file written for each plan. Raises BudgetError where no file is within the limit, or none is close below it.
    """
    goal, coupling = task.goal, task.coupling
    assert goal.price is not None
    share = _INT8_SHARE if task.as_int8 else 1.0
    with tempfile.TemporaryDirectory() as folder:
        files = _Files(task, Path(folder))
        limit, above = goal.limit_of(files.dense), files.full - share * price_of(None)
        best: tuple[float, Plan] | None = None
        for _ in range(TRIALS):
            # What a file has above its tensors hardly changes from plan to plan: the last one's serves the next.
            plan = search(lambda keep, above=above: share * price_of(keep) + above, limit)  # type: ignore[misc]
            size = files.size(task.small(plan))
            if size <= limit and (best is None or size > best[0]):
                best = size, plan
            if best and best[0] >= limit * (1 - goal.price.close):
                break
            above = size - share * price_of(plan.counted(coupling))
    if best is None:
        raise BudgetError(f"bytes: no file of at most {goal.price.say(limit)} came out; the last has {size:,} bytes.")
    if best[0] < limit * (1 - goal.price.close):
        raise too_coarse(goal.price, limit, best[0])
    return best[1], Met("bytes", goal.allocation.name, limit, files.dense, best[0])


class _Files:
    """Writes models to see how large they are: as fp32, or as the int8 files that they would become."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.path, self.device = folder / "model.onnx", task.measuring.device
        self.candidates: Candidates | None = None
        graph = task.whole
        self.dense = self.full = self.size(graph)
        if task.as_int8:
            inputs = tensors_among(first_sample(graph))
            self.candidates = Candidates.of(self.path, inputs, task.quantizing.int8_form, None)
            self.full = self.size(graph)

    def size(self, graph: Graph) -> int:
        to_onnx(graph, self.path, opset=None, metadata={}, device=self.device)
        if self.candidates:
            self.candidates.make_int8(self.path)
            return self.path.stat().st_size + _METADATA
        return sum(file.stat().st_size for file in self.path.parent.iterdir() if file.name.startswith(self.path.name))
