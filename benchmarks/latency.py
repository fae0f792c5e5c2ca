"""How much of a cut in multiply-adds comes out as speed: models x cuts x threads in onnxruntime.

python benchmarks/latency.py                        what results/latency.json does not hold yet
python benchmarks/latency.py --only resnet50 --cuts 0.5 --threads 1
python benchmarks/latency.py --again                also what it holds; --table only writes the table again

A quiet machine is needed. The cut is met by count: with one ratio in every layer, one ranking over all, or by what the
latency table of as many threads says is fast. A cut of 1 is the model with every layer as narrow as the step: what is
left of its latency is the calls, the layouts and the threads, which no width changes, and bounds what any cut can give.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision

from provenance import RESULTS, provenance, summary
from real_models import enliven
from slim_model.budget.allocations import allocation_of
from slim_model.budget.goal import Goal, Task
from slim_model.budget.plan import Plan
from slim_model.budget.ratio import plan_by_ratio
from slim_model.budget.search import plan_within_limit
from slim_model.cost.counted import cost
from slim_model.cost.latency_store import width_step
from slim_model.cost.prices import PRICES
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.shrink_graph import shrink
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.trace import trace
from slim_model.measuring.options import MeasuringOptions
from slim_model.measuring.timing import compare
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify
from stored_rows import load_rows, save_rows

MODELS = {"resnet50": 0.9, "vgg16_bn": 0.9, "mobilenet_v2": 0.75, "efficientnet_b0": 0.75}
"""The share of a cut in multiply-adds that should come out as speed."""
CUTS = (0.3, 0.5, 0.6, 0.75)
STEPS = {"auto": width_step("auto", "cpu"), "1": 1}
"""Width steps: that of this machine, and none."""

ALLOCATIONS = ("uniform", "global:normalise=lamp", "latency")
NARROWEST = 1.0

Key = tuple[str, float, str, str, int]


def plan_for(
    coupling: Coupling, scores: list[torch.Tensor], cut: float, step: int, allocate: str, threads: int
) -> Plan:
    """The widths that save ``cut`` of the multiply-adds."""
    if cut == NARROWEST:
        ratios = [1 - min(1.0, step / group.width) for group in coupling.groups]
        return plan_by_ratio(coupling, scores, ratios, multiple_of=step)
    goal = Goal(cut, PRICES["macs"], allocation=allocation_of(allocate), block=step)
    measuring = MeasuringOptions(threads=threads)
    task = Task(torch.nn.Identity(), coupling.graph, coupling, scores, goal, measuring=measuring)
    return plan_within_limit(task)[0]


def measured(name: str, wanted: list[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The rows of one model."""
    torch.manual_seed(0)
    model = enliven(torchvision.models.get_model(name, weights=None))
    coupling = couple(simplify(trace(model, (torch.randn(2, 3, 224, 224),))))
    scores, dense_cost = score(coupling, "l1"), cost(coupling)
    inputs = [torch.randn(1, 3, 224, 224)]
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        to_onnx(coupling.graph, dense, opset=None, metadata={})
        for key in sorted(wanted):
            _, cut, step, allocate, threads = key
            plan = plan_for(coupling, scores, cut, STEPS[step], allocate, threads)
            small, small_cost = Path(folder) / "slim.onnx", cost(coupling, plan.keep)
            to_onnx(shrink(coupling, plan.keep)[0], small, opset=None, metadata={})
            found = compare("onnxruntime", dense, small, inputs, threads=threads, budget_s=12)
            times = dense_cost.macs / small_cost.macs
            row = {"model": name, "cut": cut, "step": step, "multiple_of": STEPS[step], "allocate": allocate}
            row |= {"threads": threads, "widths": [after for _, after in plan.widths]}
            row |= {"dense": asdict(dense_cost), "slim": asdict(small_cost), "macs_times": times}
            row |= {"realised": found.speedup / times, "verdict": found.verdict, "latency": asdict(found)}
            yield key, row | provenance()


# -- rows and tables ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["model"], row["cut"], row["step"], row["allocate"], row["threads"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows)]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "cut asked": lambda r: "the narrowest" if r["cut"] == NARROWEST else f"{r['cut']:.0%}",
    "widths": lambda r: f"multiples of {r['multiple_of']}",
    "allocation": lambda r: r["allocate"],
    "threads": lambda r: str(r["threads"]),
    "MACs fewer": lambda r: f"{r['macs_times']:.2f}x",
    "dense, ms (p10-p90)": lambda r: _milliseconds(r["latency"]["dense"]),
    "slim, ms (p10-p90)": lambda r: _milliseconds(r["latency"]["slim"]),
    "faster (95 %)": lambda r: (
        f"{r['latency']['speedup']:.2f}x ({r['latency']['speedup_low']:.2f}-{r['latency']['speedup_high']:.2f})"
    ),
    "shown": lambda r: r["verdict"],
    "realised": lambda r: "" if r["cut"] == NARROWEST else f"{r['realised']:.2f}" + (_met(r) * (r["step"] == "auto")),
}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("# Speed for multiply-adds", "", "Written by `benchmarks/latency.py`; batch 1, onnxruntime.", "")
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    yield from ("| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in rows)
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted({summary(row) for row in rows})))


def _milliseconds(latency: dict[str, Any]) -> str:
    return f"{latency['median_ms']:.3g} ({latency['p10_ms']:.3g}-{latency['p90_ms']:.3g})"


def _met(row: dict[str, Any]) -> str:
    goal = MODELS.get(row["model"])
    return "" if goal is None else f", goal {goal} {'met' if row['realised'] >= goal else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="NAME", help="torchvision's names")
    parser.add_argument("--cuts", nargs="+", type=float, default=list(CUTS))
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--allocate", nargs="+", choices=ALLOCATIONS, default=list(ALLOCATIONS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.json")
    given = parser.parse_args()
    rows = read_rows(given.out)
    for name in [] if given.table else given.only:
        sizes = [(cut, step, how) for cut in given.cuts for step in given.steps for how in given.allocate]
        sizes += [(NARROWEST, "auto", "uniform")] if set(CUTS) <= set(given.cuts) else []
        keys = [(name, *size, n) for size in sizes for n in given.threads]
        wanted = [key for key in keys if given.again or key not in rows]
        for key, row in measured(name, wanted) if wanted else ():
            rows[key] = row
            write_rows(given.out, rows)
            print(*(f"{cell(row):>10}" for cell in COLUMNS.values()), flush=True)
    write_rows(given.out, rows)


if __name__ == "__main__":
    main()
