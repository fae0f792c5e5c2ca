"""A limit on the bytes of the ONNX file -> a plan: files are written until one meets it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slim_model.budget.goal import TRIALS, Goal, Met, Search, too_coarse
from slim_model.budget.plan import Plan
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.shrink_graph import shrink
from slim_model.errors import BudgetError
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph

# -- the file -------------------------------------------------------------------------------------------------------


def plan_within_file_size(
    coupling: Coupling, goal: Goal, search: Search, of: Callable[[np.ndarray | None], float], allocate: str, device: str
) -> tuple[Plan, Met]:
    """A file holds more than tensors, and less where norms are folded into layers: what it has above them is read from
    a file written for each plan."""
    with tempfile.TemporaryDirectory() as folder:
        dense = _size(coupling.graph, Path(folder), device)
        limit, above = goal.of(dense), dense - of(None)
        best: tuple[float, Plan] | None = None
        for _ in range(TRIALS):
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
        raise too_coarse(goal.price, limit, best[0])
    return best[1], Met("bytes", allocate, limit, dense, best[0])


def _size(graph: Graph, folder: Path, device: str) -> int:
    path = folder / "model.onnx"
    to_onnx(graph, path, opset=None, metadata={}, device=device)
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("model.onnx"))
