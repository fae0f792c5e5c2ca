"""What is left of trained nets when channels go and a few thousand training samples without labels make up for it.

python benchmarks/recovery.py                        what results/recovery.json does not hold yet
python benchmarks/recovery.py --nets resnet56 --levels full

At each cut one plan for all levels: channels ranked by reconstruction, layers weighed by what the outputs lose
(``budget.output_damage``), the greedy allocation for multiply-adds. LeNet-300-100 loses the same share of each layer,
and is ranked without data (kernel) where it is recovered without. ``blocks`` learns to give the dense model's values, a
few blocks at a time; the levels before it train nothing. Accuracy is that of the written ONNX file on all test samples.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import datasets
import evaluate
import nets
from peer import PEER, ratio_for
from provenance import RESULTS, provenance, summary
from slim_model.budget.allocations import allocation_of
from slim_model.budget.limit import plan_under_limit
from slim_model.budget.output_damage import measure_output_damage
from slim_model.budget.plan import Plan
from slim_model.budget.ratio import plan_by_ratio
from slim_model.cost.counted import CostModel, cost
from slim_model.cost.prices import price_of
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import cut_of, positions_left
from slim_model.cutting.shrink_graph import shrink
from slim_model.data.accuracy import Exam
from slim_model.data.batches import Data
from slim_model.data.datasets import Divided
from slim_model.data.open_data import open_data
from slim_model.export.check_onnx import check_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph, first_sample
from slim_model.graph.trace import trace
from slim_model.measuring.timing import compare
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.example_batches import other_batches
from slim_model.proof.prove import Proof, prove
from slim_model.ranking.score import score
from slim_model.recipe import Recipe
from slim_model.recovery.options import LEVELS
from slim_model.recovery.recover import recover
from slim_model.simplifying.simplify import simplify
from stored_rows import load_rows, save_rows
from train import trained

PEER_LEVEL = "torch-pruning"
"""Its l1 magnitudes, the same ratio in every layer that it can prune, nothing recovered."""


@dataclass(frozen=True, slots=True)
class Case:
    """``cuts``: how many times fewer multiply-adds; below 1, the share of each layer's channels that goes. ``samples``
    to fit on, of which ``ranked`` rank channels and weigh layers."""

    load: Callable[[], nn.Module]
    split: Callable[[str], datasets.Split]
    cuts: tuple[float, ...]
    samples: int = 4000
    ranked: int = 1000
    levels: tuple[str, ...] = ("none", "bias", "affine", "full", "blocks")


def _cifar10(split: str) -> datasets.Split:
    return datasets.cifar10(split, norm=datasets.IMAGENET_NORM)


_RESNET_LEVELS = (PEER_LEVEL, "none", "bias", "affine", "full", "blocks")
CASES = {
    "resnet56": Case(
        *(lambda: evaluate.load_published("resnet56"), _cifar10, (1.5, 2.1, 2.55, 3.5), 8000, 2000, _RESNET_LEVELS),
    ),
    "lenet300": Case(
        *(trained("lenet300_fashion", nets.LeNet300), datasets.fashion_mnist, (0.5, 0.6, 0.7, 0.8)),
        levels=("none", "data-free", "affine", "full", "blocks"),
    ),
    "mnist": Case(trained("mnist", nets.MnistNet), datasets.mnist, (4.0, 10.0)),
    "fashion": Case(trained("fashion", nets.FashionNet), datasets.fashion_mnist, (2.0, 4.0)),
    "vit_mnist": Case(lambda: evaluate.load_published("vit_mnist"), datasets.mnist, (1.5, 2.0), 1000, 250),
    "resnet20": Case(
        *(lambda: evaluate.load_published("resnet20"), _cifar10, (1.5, 2.0), 8000, 2000, _RESNET_LEVELS),
    ),
}


def row_of(name: str, cut: float, level: str) -> dict[str, Any]:
    case = CASES[name]
    test, coupled = case.split("test"), _coupled(name)
    data, graph = coupled.data, coupled.coupling.graph
    chosen = _peers(coupled, cut) if level == PEER_LEVEL else _planned(name, cut, level)
    started = time.perf_counter()
    given = None if level == "data-free" else data(case.samples)
    coupling, keep = chosen.coupling, chosen.plan.keep
    result, steps = recover(
        *(graph, chosen.small, positions_left(coupling, keep), given, "none" if level == PEER_LEVEL else level),
        Exam(None),
        progress=_said,
    )
    took = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        dense, path = Path(folder) / "dense.onnx", Path(folder) / "slim.onnx"
        to_onnx(graph, dense, opset=None, metadata={})
        to_onnx(result, path, opset=None, metadata={})
        error = check_onnx(path, result, other_batches(graph, (2,), 0))
        right, whole = (evaluate.accuracy(evaluate.onnx_predictor(file), test) for file in (path, dense))
        latency = compare("onnxruntime", dense, path, first_sample(graph), threads=1, budget_s=5)
    print(f"{name} {cut:g} {level}: {100 * right:.2f} %, {took:.0f} s, {latency.speedup:.2f} times as fast", flush=True)
    return {
        "net": name, "cut": cut, "level": level, "accuracy": round(right, 4), "dense_accuracy": round(whole, 4),
        "macs": cost(coupling, keep).macs, "dense_macs": cost(coupling).macs,
        "params": cost(coupling, keep).params, "dense_params": cost(coupling).params,
        "samples": 0 if level in ("data-free", "none", PEER_LEVEL) else case.samples,
        "plan_s": round(chosen.seconds, 1), "recover_s": round(took, 1), "threads": torch.get_num_threads(),
        "masked_max_rel_error": chosen.proof.masked_max_rel_error, "onnx_max_rel_error": error,
        "widths": chosen.plan.widths,
        "output_error": {step.name: [step.did["error_before"], step.did["error_after"]] for step in steps},
        "latency": asdict(latency),
        "provenance": provenance(),
    }  # fmt: skip


# -- the same net and the same plan for all levels ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coupled:
    """``data(count)``: as many samples, without labels."""

    case: Case
    model: nn.Module
    inputs: tuple[Tensor]
    coupling: Coupling
    data: Callable[[int], Data]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A small graph that is proven; ``seconds`` to rank channels and weigh layers."""

    coupling: Coupling
    plan: Plan
    small: Graph
    proof: Proof
    seconds: float


@functools.cache
def _coupled(name: str) -> Coupled:
    case = CASES[name]
    train, model = case.split("train"), case.load()
    graph = simplify(trace(model, (train.inputs[:2],)))

    def data(count: int) -> Data:
        return open_data(Divided((train.inputs,)), graph.inputs, samples=count, batch=100)

    return Coupled(case, model, (train.inputs[:2],), couple(graph), data)


def _planned(name: str, cut: float, level: str) -> Chosen:
    coupling = _coupled(name).coupling
    scores, seconds = _ranked(name, level == "data-free" or (cut < 1 and level == "none"), cut >= 1)
    if cut < 1:
        plan = plan_by_ratio(coupling, scores, ratio=cut)
    else:
        meter = CostModel(coupling)
        of, limit = functools.partial(_macs, meter), cost(coupling).macs / cut
        plan = plan_under_limit(
            coupling, scores, price_of("macs"), of, limit, allocation=allocation_of("greedy:normalise=none,floor=0.05")
        )
    graph = coupling.graph
    small, replay = shrink(coupling, plan.keep)
    proof = prove(graph, small, cut_of(coupling, plan.keep), replay, [graph.inputs, *other_batches(graph, (1,), 0)])
    return Chosen(coupling, plan, small, proof, seconds)


@functools.cache
def _ranked(name: str, free: bool, weighed: bool) -> tuple[list[Tensor], float]:
    """Scores, and the seconds of ranking and weighing; ``free``: without data."""
    coupled, started = _coupled(name), time.perf_counter()
    data = coupled.data(coupled.case.ranked)
    scores = score(coupled.coupling, "kernel" if free else "reconstruction", data=None if free else data)
    if weighed:
        scores = measure_output_damage(coupled.coupling, scores, data, progress=_said)
    return scores, time.perf_counter() - started


def _peers(coupled: Coupled, cut: float) -> Chosen:
    started, recipe = time.perf_counter(), Recipe.of(multiple_of=1, **PEER)
    recipe = recipe.but(ratio=ratio_for(cut, coupled.model, coupled.inputs, recipe))
    found = compile_model(coupled.model, coupled.inputs, recipe)
    return Chosen(found.coupling, found.plan, found.small, found.proof, time.perf_counter() - started)


def _said(text: str) -> None:
    print("   ", text, flush=True)


def _macs(meter: CostModel, keep: np.ndarray) -> float:
    return meter(keep).macs


# -- showing --------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    order = [PEER_LEVEL, "none", "data-free", *LEVELS]
    levels = [level for level in dict.fromkeys(order) if any(row["level"] == level for row in rows)]
    lines = [
        f"| net | dense | cut | multiply-adds | {' | '.join(levels)} | faster | seconds |",
        "|---|---|---|---|" + "---|" * (len(levels) + 2),
    ]
    for name, case in CASES.items():
        for cut in case.cuts:
            here = {row["level"]: row for row in rows if (row["net"], row["cut"]) == (name, cut)}
            if here:
                lines.append(_line(name, cut, levels, here))
    return "\n".join(lines)


def _line(name: str, cut: float, levels: list[str], here: dict[str, dict[str, Any]]) -> str:
    ours = [row for level, row in here.items() if level != PEER_LEVEL] or list(here.values())
    faster = statistics.median(row["latency"]["speedup"] for row in ours)
    cells = [
        *(name, f"{100 * ours[-1]['dense_accuracy']:.2f}", f"{cut:.0%} of each layer" if cut < 1 else f"{cut:g}x"),
        f"{ours[-1]['dense_macs'] / ours[-1]['macs']:.2f}x fewer",
        *(f"{100 * here[level]['accuracy']:.2f}" if level in here else "" for level in levels),
        f"{faster:.2f}x",
        f"{max(row['plan_s'] + row['recover_s'] for row in ours):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def picture(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Accuracy over what is left of multiply-adds, and over measured latency, one line a level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    here = [row for row in rows if row["net"] == name]
    whole = 100 * here[0]["dense_accuracy"]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for level in dict.fromkeys([*CASES[name].levels]):
        own = sorted((row for row in here if row["level"] == level), key=lambda row: row["cut"])
        right = [whole, *(100 * row["accuracy"] for row in own)]
        left = [100.0, *(100 * row["macs"] / row["dense_macs"] for row in own)]
        time_left = [100.0, *(100 / row["latency"]["speedup"] for row in own)]
        style = {"marker": "o", "markersize": 3.5, "linestyle": "--" if level == PEER_LEVEL else "-"}
        axes[0].plot(left, right, label=level, **style)
        axes[1].plot(time_left, right, label=level, **style)
    for axis, what in zip(axes, ("multiply-adds", "latency in onnxruntime, one thread"), strict=True):
        axis.axhline(whole, color="grey", linewidth=0.8, linestyle=":", label="dense")
        axis.set(xlabel=f"% of the dense {what}")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="accuracy, % of the test set", title=f"{name}, no labels")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy by recovery level, without labels.")
    parser.add_argument("--nets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--cuts", nargs="*", type=float)
    parser.add_argument("--levels", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only the table and the picture, from the .json")
    parser.add_argument("--out", type=Path, default=RESULTS / "recovery.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = load_rows(given.out)
    for name in [] if given.table else given.nets:
        for cut in given.cuts or CASES[name].cuts:
            done = {row["level"] for row in rows if (row["net"], row["cut"]) == (name, cut)}
            for level in given.levels or CASES[name].levels:
                if level not in done:
                    rows.append(row_of(name, cut, level))
                    _write(rows, given.out)
    if rows:
        _write(rows, given.out)
        print(given.out.with_suffix(".md").read_text())


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    save_rows(path, rows)
    stamps = sorted({summary(row["provenance"]) for row in rows})
    text = (
        f"# Recovery without labels\n\n{__doc__}\n"
        "Accuracy in % of the test set. *faster*: the ONNX file against that of the dense net, one example, "
        "one thread, in turns; *seconds*: the longest of ranking, weighing and recovering, on a busy machine.\n\n"
        f"{table(rows)}\n\n![resnet56](recovery.png)\n\n" + "".join(f"- {stamp}\n" for stamp in stamps)
    )
    path.with_suffix(".md").write_text(text)
    if any(row["net"] == "resnet56" for row in rows):
        picture(rows, "resnet56", path.with_suffix(".png"))


if __name__ == "__main__":
    main()
