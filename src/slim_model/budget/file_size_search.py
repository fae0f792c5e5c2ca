"""A limit on the bytes of the ONNX file -> a plan: files are written until one meets it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slim_model.budget.goal import TRIALS, Met, Search, Task, too_coarse
from slim_model.budget.plan import Plan
from slim_model.cutting.shrink_graph import shrink
from slim_model.errors import BudgetError
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph


def plan_within_file_size(
    task: Task, search: Search, price_of: Callable[[np.ndarray | None], float]
) -> tuple[Plan, Met]:
    """The plan whose ONNX file is within the limit, and closest below it. ``price_of``: bytes of the stored tensors.

    A file holds more than tensors, and less where norms are folded into layers: what it has above them is read from a
    file written for each plan. Raises BudgetError where no file is within the limit, or none is close below it.
    """
    goal, coupling, device = task.goal, task.coupling, task.measuring.device
    assert goal.price is not None
    with tempfile.TemporaryDirectory() as folder:
        dense = _size(coupling.graph, Path(folder), device)
        limit, above = goal.limit_of(dense), dense - price_of(None)
        best: tuple[float, Plan] | None = None
        for _ in range(TRIALS):
            # What a file has above its tensors hardly changes from plan to plan: the last one's serves the next.
            plan = search(lambda keep, above=above: price_of(keep) + above, limit)  # type: ignore[misc]
            size = _size(shrink(coupling, plan.keep)[0], Path(folder), device)
            if size <= limit and (best is None or size > best[0]):
                best = size, plan
            if best and best[0] >= limit * (1 - goal.price.close):
                break
            above = size - price_of(plan.keep)
    if best is None:
        raise BudgetError(f"bytes: no file of at most {goal.price.say(limit)} came out; the last has {size:,} bytes.")
    if best[0] < limit * (1 - goal.price.close):
        raise too_coarse(goal.price, limit, best[0])
    return best[1], Met("bytes", goal.allocation.name, limit, dense, best[0])


def _size(graph: Graph, folder: Path, device: str) -> int:
    path = folder / "model.onnx"
    to_onnx(graph, path, opset=None, metadata={}, device=device)
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("model.onnx"))
