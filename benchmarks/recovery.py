"""What is left of trained nets when channels go and nothing is trained: no labels, a few thousand training samples.

python benchmarks/recovery.py                        what results/recovery.json does not hold yet
python benchmarks/recovery.py --nets resnet56 --levels full

At each cut one plan for all levels: channels ranked by reconstruction, layers weighed by what the outputs lose
(``slim_model.damage``), the greedy allocation for multiply-adds. LeNet-300-100 loses the same share of each layer, and
is ranked without data (kernel) where it is recovered without. Accuracy is that of the written ONNX file on all test
samples.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import datasets
import evaluate
import nets
from provenance import RESULTS, provenance, summary
from slim_model.accuracy import Exam
from slim_model.allocate import meet
from slim_model.budget import Plan, budget
from slim_model.cost import Meter, cost
from slim_model.couple import Coupling, couple
from slim_model.criteria import score
from slim_model.damage import damage
from slim_model.data import Data, Divided, open_data
from slim_model.export import check_onnx, to_onnx
from slim_model.prices import price_of
from slim_model.prove import prove
from slim_model.recovery import LEVELS, recover
from slim_model.shrink import cut_of, left_of, shrink
from slim_model.simplify import simplify
from slim_model.slim import other_batches
from slim_model.trace import trace
from train import trained


@dataclass(frozen=True, slots=True)
class Case:
    """``cuts``: how many times fewer multiply-adds; below 1, the share of each layer's channels that goes. ``samples``
    to fit on, of which a quarter ranks channels and weighs layers; ``mirrored``: and their mirror images."""

    load: Callable[[], nn.Module]
    split: Callable[[str], datasets.Split]
    cuts: tuple[float, ...]
    samples: int = 4000
    levels: tuple[str, ...] = ("none", "bias", "affine", "full")


def _cifar10(split: str) -> datasets.Split:
    return datasets.cifar10(split, norm=datasets.IMAGENET_NORM)


CASES = {
    "resnet56": Case(lambda: evaluate.load_published("resnet56"), _cifar10, (2.1, 2.55), samples=8000),
    "lenet300": Case(
        *(trained("lenet300_fashion", nets.LeNet300), datasets.fashion_mnist, (0.5, 0.6, 0.7, 0.8)),
        levels=("none", "data-free", "affine", "full"),
    ),
    "mnist": Case(trained("mnist", nets.MnistNet), datasets.mnist, (4.0, 10.0)),
    "fashion": Case(trained("fashion", nets.FashionNet), datasets.fashion_mnist, (2.0, 4.0)),
    "vit_mnist": Case(lambda: evaluate.load_published("vit_mnist"), datasets.mnist, (1.5, 2.0), samples=1000),
    "resnet20": Case(lambda: evaluate.load_published("resnet20"), _cifar10, (1.5, 2.0), samples=2000),
}


def rows_of(name: str, cut: float, levels: list[str]) -> list[dict[str, Any]]:
    case, found = CASES[name], []
    train, test = case.split("train"), case.split("test")
    graph = simplify(trace(case.load(), (train.inputs[:2],)))

    def data(count: int) -> Data:
        return open_data(Divided((train.inputs,)), graph.inputs, samples=count, batch=100)

    coupling = couple(graph)
    for level in levels:
        plan, seconds = _planned(name, cut, level == "data-free" or (cut < 1 and level == "none"), coupling, data)
        small, replay = shrink(coupling, plan.keep)
        proof = prove(graph, small, cut_of(coupling, plan.keep), replay, [graph.inputs, *other_batches(graph, (1,), 0)])
        started = time.perf_counter()
        result, steps = recover(
            *(graph, small, left_of(coupling, plan.keep), None if level == "data-free" else data(case.samples), level),
            Exam(None),
            said=_said,
        )
        took = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "slim.onnx"
            to_onnx(result, path, opset=None, metadata={})
            error = check_onnx(path, result, other_batches(graph, (2,), 0))
            right = evaluate.accuracy(evaluate.onnx_predictor(path), test)
        found.append({
            "net": name, "cut": cut, "level": level, "accuracy": round(right, 4),
            "macs": cost(coupling, plan.keep).macs, "dense_macs": cost(coupling).macs,
            "params": cost(coupling, plan.keep).params, "dense_params": cost(coupling).params,
            "samples": 0 if level in ("data-free", "none") else case.samples,
            "plan_s": round(seconds, 1), "recover_s": round(took, 1), "threads": torch.get_num_threads(),
            "masked_max_rel_error": proof.masked_max_rel_error, "onnx_max_rel_error": error,
            "widths": plan.widths,
            "output_error": {step.name: [step.did["error_before"], step.did["error_after"]] for step in steps},
            "provenance": provenance(),
        })  # fmt: skip
        print(f"{name} {cut:g} {level}: {100 * right:.2f} %, {took:.0f} s", flush=True)
    return found


_ranked: dict[tuple[str, bool], tuple[list[Tensor], float]] = {}


def _planned(name: str, cut: float, free: bool, coupling: Coupling, data: Callable[[int], Data]) -> tuple[Plan, float]:
    """One plan for all levels, and the seconds of ranking and weighing; ``free``: without data."""
    few = CASES[name].samples // 4
    if (name, free) not in _ranked:
        started = time.perf_counter()
        scores = score(coupling, "kernel" if free else "reconstruction", data=None if free else data(few))
        if cut >= 1:
            scores = damage(coupling, scores, data(few), said=_said)
        _ranked[name, free] = scores, time.perf_counter() - started
    scores, seconds = _ranked[name, free]
    if cut < 1:
        return budget(coupling, scores, ratio=cut), seconds
    meter = Meter(coupling)
    of, limit = functools.partial(_macs, meter), cost(coupling).macs / cut
    return meet(coupling, scores, price_of("macs"), of, limit, allocate="greedy:normalise=none,floor=0.05"), seconds


def _said(text: str) -> None:
    print("   ", text, flush=True)


def _macs(meter: Meter, keep: np.ndarray) -> float:
    return meter(keep).macs


# -- showing --------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    levels = [level for level in ("none", "data-free", *LEVELS) if any(row["level"] == level for row in rows)]
    levels = list(dict.fromkeys(levels))
    lines = [
        "| net | cut | multiply-adds | " + " | ".join(levels) + " | seconds |",
        "|---|---|---|" + "---|" * (len(levels) + 1),
    ]
    for name, case in CASES.items():
        for cut in case.cuts:
            here = {row["level"]: row for row in rows if (row["net"], row["cut"]) == (name, cut)}
            if not here:
                continue
            any_row = list(here.values())[-1]
            cells = [f"{100 * here[level]['accuracy']:.2f}" if level in here else "" for level in levels]
            said = f"{cut:.0%} of each layer" if cut < 1 else f"{cut:g}x"
            seconds = max(row["plan_s"] + row["recover_s"] for row in here.values())
            times = any_row["dense_macs"] / any_row["macs"]
            lines.append(f"| {name} | {said} | {times:.2f}x fewer | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy by recovery level, nothing trained.")
    parser.add_argument("--nets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--cuts", nargs="*", type=float)
    parser.add_argument("--levels", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    path = RESULTS / "recovery.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in given.nets:
        for cut in given.cuts or CASES[name].cuts:
            done = {row["level"] for row in rows if (row["net"], row["cut"]) == (name, cut)}
            wanted = [level for level in given.levels or CASES[name].levels if level not in done]
            for level in wanted:
                rows += rows_of(name, cut, [level])
                _write(rows, path)
    print((RESULTS / "recovery.md").read_text() if rows else "nothing measured")


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"what": {json.dumps(str(__doc__).splitlines()[0])},\n "rows": [\n  {lines}\n ]}}\n')
    text = (
        f"# Recovery without training\n\n{__doc__}\n"
        f"Accuracy in % of the test set. *seconds*: the longest of ranking, weighing and recovering, on a busy machine."
        f"\n\n{table(rows)}\n\n{summary(rows[-1]['provenance'])}\n"
    )
    (RESULTS / "recovery.md").write_text(text)


if __name__ == "__main__":
    main()
