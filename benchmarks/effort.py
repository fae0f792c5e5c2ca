"""What each --effort leaves of trained nets, how fast the file is, and the processor time of it.

python benchmarks/effort.py                                  what results/effort.json does not hold yet
python benchmarks/effort.py --nets resnet56 --efforts best
python benchmarks/effort.py --table                          only the .md, from the .json

Nothing but the effort and the goal is named: ``--data``, ``--of``, ``--ratio``. The samples are training pictures
without labels; accuracy is that of the written ONNX file on all test samples, by which nothing was chosen. Beside them
stands Torch-Pruning's default: magnitudes, the same ratio in every layer that it can prune, nothing recovered.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import datasets
import evaluate
import nets
from peer import INNER, PEER, ratio_for
from provenance import RESULTS, ROOT, provenance, summary
from slim_model.data.datasets import Divided
from slim_model.effort import EFFORTS
from slim_model.errors import SlimError
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.recipe import Recipe
from stored_rows import load_rows, save_rows
from train import trained
from written_files import in_turns, written

PEER_NAME = "torch-pruning"
FILES = ROOT / "build" / "efforts"
_TAKEN = max(row.samples for row in EFFORTS.values())


class Goal(NamedTuple):
    """``times`` less of ``of``: fewer multiply-adds (macs), or faster as measured (latency)."""

    of: str
    times: float


@dataclass(frozen=True, slots=True)
class Case:
    load: Callable[[], nn.Module]
    split: Callable[[str], datasets.Split]
    goals: tuple[Goal, ...]


def _cifar10(split: str) -> datasets.Split:
    return datasets.cifar10(split, norm=datasets.IMAGENET_NORM)


def _macs(*times: float) -> tuple[Goal, ...]:
    return tuple(Goal("macs", x) for x in times)


def _latency(*times: float) -> tuple[Goal, ...]:
    return tuple(Goal("latency", x) for x in times)


CASES = {
    "resnet56": Case(lambda: evaluate.load_published("resnet56"), _cifar10, _latency(1.6, 1.8) + _macs(1.65, 1.85)),
    "resnet20": Case(lambda: evaluate.load_published("resnet20"), _cifar10, _macs(1.5)),
    "efficientnet_lite0": Case(lambda: nets.efficientnet_lite(0), datasets.imagenet, _latency(1.25, 1.5, 2.0)),
    "efficientnet_lite1": Case(lambda: nets.efficientnet_lite(1), datasets.imagenet, _latency(1.25, 1.5, 2.0)),
    "vit_mnist": Case(lambda: evaluate.load_published("vit_mnist"), datasets.mnist, _macs(1.5)),
    "fashion": Case(trained("fashion", nets.FashionNet), datasets.fashion_mnist, _macs(2.0)),
    "mnist": Case(trained("mnist", nets.MnistNet), datasets.mnist, _macs(4.0)),
    "text": Case(trained("text", nets.TextNet), datasets.imdb, _macs(2.0)),
}


def row_of(name: str, goal: Goal, effort: str) -> dict[str, Any]:
    """One net, one goal, one effort."""
    case = CASES[name]
    model, learned, test = case.load(), case.split("train"), case.split("test")
    order = torch.randperm(len(learned.inputs), generator=torch.Generator().manual_seed(0))[:_TAKEN]
    inputs = learned.inputs[order]
    started, wall = time.process_time(), time.perf_counter()
    try:
        compiled = _compiled(model, inputs, goal, effort)
    except SlimError as error:
        if effort != PEER_NAME:
            raise
        failed = re.split(r" \(at |\. Nothing was", str(error))[0]
        return {"net": name, **goal._asdict(), "effort": effort, "failed": failed} | provenance()
    spent, took = time.process_time() - started, time.perf_counter() - wall
    dense, path = files_of(name, goal, effort)
    facts = written(compiled, dense, path)
    right, whole = (evaluate.accuracy(evaluate.onnx_predictor(file), test) for file in (path, dense))
    return {
        "net": name,
        **goal._asdict(),
        "effort": effort,
        "accuracy": round(right, 4),
        "dense_accuracy": round(whole, 4),
        "processor_s": round(spent, 1),
        "seconds": round(took, 1),
        **facts,
        "latency": timed(name, goal, effort),
    } | provenance()


def files_of(name: str, goal: Goal, effort: str) -> tuple[Path, Path]:
    """Where the dense and the small file stay, so that they can be timed again."""
    return FILES / f"{name}.onnx", FILES / f"{name}_{goal.of}_{goal.times:g}_{effort}.onnx"


def timed(name: str, goal: Goal, effort: str) -> dict[str, Any]:
    return in_turns(*files_of(name, goal, effort), (CASES[name].split("test").inputs[:1],))


def _compiled(model: nn.Module, inputs: torch.Tensor, goal: Goal, effort: str) -> Compiled:
    example = (inputs[:2],)
    if effort == PEER_NAME:
        return compile_model(model, example, _peer(model, example, goal.times))
    recipe = Recipe.of(of=goal.of, ratio=1 - 1 / goal.times, effort=effort, data=Divided((inputs,)))
    return compile_model(model, example, recipe, progress=lambda text: print("   ", text, flush=True))


def _peer(model: nn.Module, example: tuple[torch.Tensor], times: float) -> Recipe:
    """Everything that it can prune: its layers named ``INNER`` alone where there are such."""
    names = [name for name, _ in model.named_modules()]
    keep = tuple(pattern for pattern in INNER if fnmatch.filter(names, pattern))
    recipe = Recipe.of(multiple_of=1, **PEER | {"keep": keep if len(keep) == len(INNER) else ()})
    return recipe.but(ratio=ratio_for(times, model, example, recipe))


# -- rows and tables ------------------------------------------------------------------------------------------------

Key = tuple[str, Goal, str]


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["net"], Goal(row["of"], row["times"]), row["effort"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    save_rows(path, rows.values())
    lines = "".join(f"{_line(row)}\n" for row in rows.values())
    foot = "".join(f"- {stamp}\n" for stamp in sorted({summary(row) for row in rows.values()}))
    path.with_suffix(".md").write_text(_HEAD + lines + "\n" + foot)


_HEAD = f"""# Efforts

{(__doc__ or "").partition("from the .json")[2].strip()}

Accuracy in %; *faster*: the ONNX file against that of the dense net, one example, one thread, in turns, with the 95 %
interval; *processor*: seconds of the whole compilation on one thread. Written by `benchmarks/effort.py`.

| net | dense | asked for | effort | accuracy | faster | multiply-adds | processor | chosen |
|---|---|---|---|---|---|---|---|---|
"""


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['net']} | | 1/{row['times']:g} of {row['of']} | {row['effort']} | {row['failed']} | | | | |"
    latency = row["latency"]
    cells = [
        *(row["net"], f"{100 * row['dense_accuracy']:.2f}", f"1/{row['times']:g} of {row['of']}"),
        *(row["effort"], f"{100 * row['accuracy']:.2f}"),
        f"{latency['speedup']:.2f} ({latency['speedup_low']:.2f}-{latency['speedup_high']:.2f})",
        f"{row['macs'][0] / row['macs'][1]:.2f}x fewer",
        *(f"{row['processor_s']:.0f}", row["allocate"] or "the same ratio"),
    ]
    return f"| {' | '.join(cells)} |"


def _possible(_: str, goal: Goal, effort: str) -> bool:
    """The peer knows no goal in time."""
    return effort != PEER_NAME or goal.of == "macs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--efforts", nargs="*", default=[PEER_NAME, *EFFORTS], choices=[PEER_NAME, *EFFORTS])
    parser.add_argument("--of", nargs="*", default=["macs", "latency"], choices=["macs", "latency"])
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "effort.json")
    parser.add_argument("--time-again", action="store_true", help="only time again what is there, on a quiet machine")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keys = [
        (name, goal, effort)
        for name in given.nets
        for goal in CASES[name].goals
        if goal.of in given.of
        for effort in given.efforts
    ]
    if given.time_again:
        rows = read_rows(given.out)
        again = {
            key: rows[key] | {"latency": timed(*key)} for key in keys if key in rows and files_of(*key)[1].exists()
        }
        write_rows(given.out, rows | again)
    for key in [] if given.table or given.time_again else [key for key in keys if _possible(*key)]:
        if key not in read_rows(given.out):
            row = row_of(*key)
            write_rows(given.out, read_rows(given.out) | {key: row})
            print(_line(row), flush=True)
    write_rows(given.out, read_rows(given.out))


if __name__ == "__main__":
    main()
