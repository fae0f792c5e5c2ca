"""Every criterion at the same widths: accuracy right after removal, and after BatchNorm recalibration.

python benchmarks/criteria.py                 all nets; rows already in the results are kept
python benchmarks/criteria.py --nets mnist    some of them
python benchmarks/criteria.py --show          only the table and the plot, from the results

Each layer loses the same fraction of its channels whatever the criterion (local scope, no rounding), so that widths,
parameters and multiply-adds are equal and only the choice of channels differs. Nothing is trained. Channels are
ranked on training samples; accuracy is that of the first images of the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import datasets
import evaluate
import nets
from slim_model.budget.ratio import plan_by_ratio
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.shrink_graph import shrink
from slim_model.data.batches import Data
from slim_model.data.open_data import open_data
from slim_model.errors import InputError
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.measuring.machine import environment
from slim_model.proof.structure import check_structure
from slim_model.ranking.criteria import CRITERIA
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify
from train import trained

RESULTS = Path(__file__).parent / "results"
SEEDS = 5
VARIANTS = ("l1:fold_bn=true", "variance:weighted=true", "hessian:form=leading", "lda:form=icc1", "thinet:centre=true")
FEW = ("oracle", "random-mask", "hessian")
"""These run the model many times, so they see fewer samples."""


@dataclass(frozen=True, slots=True)
class Case:
    """``samples``: training samples to rank by, ``few`` for criteria that run the model many times; ``test``:
    images accuracy is measured on; ``masks``: of random-mask."""

    load: Callable[[], nn.Module]
    split: Callable[[str], datasets.Split]
    ratios: tuple[float, float, float]
    samples: int = 512
    few: int = 128
    test: int = 2000
    masks: int = 32


def _cifar10(split: str) -> datasets.Split:
    return datasets.cifar10(split, norm=datasets.IMAGENET_NORM)


CASES = {
    "mnist": Case(trained("mnist", nets.MnistNet), datasets.mnist, (0.25, 0.5, 0.75)),
    "fashion": Case(trained("fashion", nets.FashionNet), datasets.fashion_mnist, (0.25, 0.5, 0.75)),
    "vit_mnist": Case(lambda: evaluate.load_published("vit_mnist"), datasets.mnist, (0.1, 0.25, 0.5), few=16, masks=16),
    "resnet20": Case(
        lambda: evaluate.load_published("resnet20"), _cifar10, (0.1, 0.25, 0.5), few=64, test=1000, masks=16
    ),
    "resnet56": Case(
        lambda: evaluate.load_published("resnet56"), _cifar10, (0.1, 0.25, 0.5), 256, few=32, test=1000, masks=8
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Accuracies are fractions; None: the net has no BatchNorm, or the criterion refused."""

    net: str
    criterion: str
    seed: int
    ratio: float
    accuracy: float | None
    recalibrated: float | None
    score_s: float | None
    samples: int
    refused: str = ""

    @property
    def key(self) -> tuple[str, str, int, float]:
        return self.net, self.criterion, self.seed, self.ratio


# -- measuring ------------------------------------------------------------------------------------------------------


def rows_of(name: str, case: Case, done: set[tuple[str, str, int, float]]) -> Iterator[Row]:
    wanted = [(c, s) for c in (*CRITERIA, *VARIANTS) for s in range(SEEDS if c == "random" else 1)]
    wanted = [(c, s) for c, s in wanted if any((name, c, s, r) not in done for r in case.ratios)]
    if not wanted:
        return
    net = case.load()
    train, test = case.split("train"), _first(case.split("test"), case.test)
    coupling = couple(simplify(trace(net, (train.inputs[:2],))))
    settle = open_data(tuple(train), coupling.graph.inputs, samples=case.samples, seed=1)
    if (name, "dense", 0, 0.0) not in done:
        yield Row(name, "dense", 0, 0.0, accuracy(coupling.graph, test), None, None, 0)
    for criterion, seed in wanted:
        samples = case.few if criterion.partition(":")[0] in FEW else case.samples
        data = open_data(tuple(train), coupling.graph.inputs, samples=samples)
        yield from ranked(name, case, criterion, seed, coupling, data, settle, test)


def _first(split: datasets.Split, count: int) -> datasets.Split:
    """A copy, so that the rest need not stay in memory."""
    return datasets.Split(split.inputs[:count].clone(), split.labels[:count].clone())


def ranked(
    name: str, case: Case, criterion: str, seed: int, coupling: Coupling, data: Data, settle: Data, test: datasets.Split
) -> Iterator[Row]:
    """One row for each ratio."""
    for ratio in case.ratios:
        typed = f"random-mask:masks={case.masks},remove={ratio}" if criterion == "random-mask" else criterion
        if ratio == case.ratios[0] or criterion == "random-mask":
            started = time.perf_counter()
            try:
                scores = score(coupling, typed, seed=seed, data=data)
            except InputError as refused:
                for r in case.ratios:
                    yield Row(name, criterion, seed, r, None, None, None, data.samples, str(refused))
                return
            seconds = round(time.perf_counter() - started, 3)
        plan = plan_by_ratio(coupling, scores, ratio=ratio, multiple_of=1)
        small, replay = shrink(coupling, plan.keep)
        check_structure(small, replay)
        settled = recalibrated(small, settle)
        after = accuracy(settled, test) if settled else None
        yield Row(name, criterion, seed, ratio, accuracy(small, test), after, seconds, data.samples)


def accuracy(graph: Graph, test: datasets.Split) -> float:
    return evaluate.accuracy(lambda x: graph.run((x,))[0], test, batch=250)


class _Settling(fx.Interpreter):
    """A run in which each BatchNorm uses the statistics of the batch, and adds them up."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.sums: dict[fx.Node, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function" or n.target is not torch.ops.aten.batch_norm.default:
            return super().run_node(n)
        x, weight, bias = (self.env[a] for a in n.args[:3])
        over = [a for a in range(x.dim()) if a != 1]
        wide, count = x.double(), x.numel() // x.shape[1]
        sums = self.sums.setdefault(n, [torch.zeros(()).double() for _ in range(3)])
        for i, part in enumerate((torch.tensor(count), wide.sum(over), wide.square().sum(over))):
            sums[i] = sums[i] + part
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=n.args[7])


def recalibrated(graph: Graph, data: Data) -> Graph | None:
    """The graph with BatchNorm statistics of ``data`` (EagleEye, Li et al. 2020); None where it has no BatchNorm."""
    run = _Settling(graph)
    with torch.no_grad():
        for batch in data.batches():
            run.run(initial_env=graph.bind(batch.inputs))
    tensors = dict(graph.tensors)
    for node, (count, total, squares) in run.sums.items():
        mean = total / count
        tensors[graph.owners[node.args[3].name]] = mean.float()
        tensors[graph.owners[node.args[4].name]] = (squares / count - mean.square()).float()
    return graph.with_tensors(tensors) if run.sums else None


# -- showing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """One criterion on one net at one ratio: what counts is after recalibration, where there is BatchNorm."""

    first: list[float]
    last: list[float]

    @property
    def value(self) -> float:
        return float(np.mean(self.last))


def cells(rows: list[Row]) -> dict[tuple[str, str, float], Cell]:
    found: dict[tuple[str, str, float], Cell] = {}
    for row in rows:
        if row.accuracy is not None:
            cell = found.setdefault((row.net, row.criterion, row.ratio), Cell([], []))
            cell.first.append(row.accuracy)
            cell.last.append(row.accuracy if row.recalibrated is None else row.recalibrated)
    return found


def beats_random(cell: Cell, chance: Cell) -> bool:
    """Above every one of the random seeds: by chance that happens one time in six."""
    return cell.value > max(chance.last)


def table(rows: list[Row]) -> str:
    found = cells(rows)
    places = [(n, r) for n, case in CASES.items() for r in case.ratios if (n, "random", r) in found]
    names = [c for c in (*CRITERIA, *VARIANTS) if any((n, c, r) in found for n, r in places)]
    refused = {(row.net, row.criterion) for row in rows if row.refused}
    dense = {row.net: row.accuracy for row in rows if row.criterion == "dense"}
    lines = [
        "| criterion | " + " | ".join(f"{n} {r:.0%}" for n, r in places) + " | beats random | s |",
        "|---|" + "---|" * (len(places) + 2),
        "| *dense* | " + " | ".join(f"{100 * (dense.get(n) or 0):.1f}" for n, _ in places) + " | | |",
    ]
    for name in names:
        shown = [_cell(found, refused, name, n, r) for n, r in places]
        tried = [(n, r) for n, r in places if (n, name, r) in found]
        won = sum(beats_random(found[n, name, r], found[n, "random", r]) for n, r in tried)
        score = "" if name == "random" else f"{won} of {len(tried)}"
        seconds = [row.score_s for row in rows if row.criterion == name and row.score_s is not None]
        longest = f"{max(seconds):.1f}" if seconds else ""
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {score} | {longest} |")
    return "\n".join(lines)


def _cell(
    found: dict[tuple[str, str, float], Cell], refused: set[tuple[str, str]], name: str, net: str, ratio: float
) -> str:
    cell, chance = found.get((net, name, ratio)), found[net, "random", ratio]
    if cell is None:
        return "refused" if (net, name) in refused else "not run"
    text = f"{100 * np.mean(cell.first):.1f}"
    if cell.last != cell.first:
        text += f" → {100 * cell.value:.1f}"
    if name == "random":
        return text + f" ± {100 * np.std(cell.last, ddof=1):.1f}"
    return f"**{text}**" if beats_random(cell, chance) else text


def verdict(rows: list[Row]) -> str:
    """Which criteria beat random less than half of the time, in words."""
    found = cells(rows)
    losers = []
    for name in (*CRITERIA, *VARIANTS):
        tried = [(n, r) for n, c, r in found if c == name and (n, "random", r) in found]
        won = sum(beats_random(found[n, name, r], found[n, "random", r]) for n, r in tried)
        if name != "random" and tried and 2 * won < len(tried):
            losers.append(f"{name} ({won} of {len(tried)})")
    return "Not better than random in most cases: " + (", ".join(losers) or "none") + "."


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = cells(rows)
    shown = [n for n in CASES if any(net == n for net, _, _ in found)]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(3.1 * len(shown), 4.6), sharey=True, squeeze=False)
    names = [c for c in CRITERIA if c != "random"]
    for axis, net in zip(axes[0], shown, strict=True):
        for ratio, colour in zip(CASES[net].ratios, ("#9ecae1", "#3182bd", "#08306b"), strict=True):
            points = [(found[net, c, ratio].value, i) for i, c in enumerate(names) if (net, c, ratio) in found]
            values, places = [100 * x for x, _ in points], [i for _, i in points]
            axis.plot(values, places, "o", color=colour, ms=4, label=f"{ratio:.0%}")
            chance = found.get((net, "random", ratio))
            if chance is not None:
                axis.axvspan(100 * min(chance.last), 100 * max(chance.last), color=colour, alpha=0.25, lw=0)
        axis.set_title(net, fontsize=9)
        axis.set_xlabel("accuracy, %", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6, title="removed", title_fontsize=6, loc="lower left")
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.suptitle("Same widths, no training; bands: random, five seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def write(rows: list[Row], path: Path) -> None:
    head = {
        "what": __doc__.split("\n\n")[0],
        "environment": environment() | {"threads": torch.get_num_threads()},
        "cases": {
            n: {"ratios": c.ratios, "samples": c.samples, "few": c.few, "test_images": c.test, "masks": c.masks}
            for n, c in CASES.items()
        },
    }
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
    path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n  {lines}\n ]\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the criteria at equal widths.")
    parser.add_argument("--nets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="only the table and the plot")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "criteria.json"
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []
    for name in [] if given.show else given.nets:
        for row in rows_of(name, CASES[name], {row.key for row in rows}):
            if row.key in {r.key for r in rows}:
                continue
            rows.append(row)
            write(rows, path)
            after = "" if row.recalibrated is None else f" -> {row.recalibrated:.3f}"
            said = row.refused[:60] if row.accuracy is None else f"{row.accuracy:.3f}{after}"
            print(f"{row.net:10} {row.criterion:24} {row.ratio:.2f} seed {row.seed}: {said}", flush=True)
    title = "# Criteria at equal widths\n\nAccuracy in %, right after removal → after BatchNorm recalibration; "
    legend = (
        "bold: better than all five seeds of random; random: mean ± standard deviation. *s*: longest scoring time, on "
        "a busy machine. Nothing is trained.\n\n"
    )
    text = title + legend + table(rows) + "\n\n" + verdict(rows) + "\n\n![plot](criteria.png)\n"
    (RESULTS / "criteria.md").write_text(text)
    plot(rows, RESULTS / "criteria.png")
    print(text)


if __name__ == "__main__":
    main()
