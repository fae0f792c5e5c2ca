"""What each --effort leaves of trained nets, how fast the file is, and the processor time of it.

python benchmarks/effort.py                                  what results/effort.json does not hold yet
python benchmarks/effort.py --nets resnet56 --efforts best
python benchmarks/effort.py --table                          only the .md, from the .json

Nothing but the effort and the goal is named: ``--data``, ``--of macs``, ``--ratio``. The samples are training pictures
without labels; accuracy is that of the written ONNX file on all test samples, by which nothing was chosen. Beside them
stands Torch-Pruning's default: magnitudes, the same ratio in every layer that it can prune, nothing recovered.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import datasets
import evaluate
import nets
from peer import PEER, ratio_for
from provenance import RESULTS, provenance, summary
from slim_model.data.datasets import Divided
from slim_model.effort import EFFORTS
from slim_model.export.check_onnx import check_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import first_sample
from slim_model.measuring.timing import compare
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import other_batches
from slim_model.recipe import Recipe
from stored_rows import load_rows, save_rows
from train import trained

PEER_NAME = "torch-pruning"
_TAKEN = max(row.samples for row in EFFORTS.values())


@dataclass(frozen=True, slots=True)
class Case:
    """``cuts``: how many times fewer multiply-adds."""

    load: Callable[[], nn.Module]
    split: Callable[[str], datasets.Split]
    cuts: tuple[float, ...]


def _cifar10(split: str) -> datasets.Split:
    return datasets.cifar10(split, norm=datasets.IMAGENET_NORM)


CASES = {
    "resnet56": Case(lambda: evaluate.load_published("resnet56"), _cifar10, (1.65, 1.85)),
    "resnet20": Case(lambda: evaluate.load_published("resnet20"), _cifar10, (1.5,)),
    "vit_mnist": Case(lambda: evaluate.load_published("vit_mnist"), datasets.mnist, (1.5,)),
    "fashion": Case(trained("fashion", nets.FashionNet), datasets.fashion_mnist, (2.0,)),
    "mnist": Case(trained("mnist", nets.MnistNet), datasets.mnist, (4.0,)),
    "text": Case(trained("text", nets.TextNet), datasets.imdb, (2.0,)),
}


def row_of(name: str, cut: float, effort: str) -> dict[str, Any]:
    """One net, one goal, one effort."""
    case = CASES[name]
    model, learned, test = case.load(), case.split("train"), case.split("test")
    order = torch.randperm(len(learned.inputs), generator=torch.Generator().manual_seed(0))[:_TAKEN]
    inputs = learned.inputs[order]
    started, wall = time.process_time(), time.perf_counter()
    compiled = _compiled(model, inputs, cut, effort)
    spent, took = time.process_time() - started, time.perf_counter() - wall
    with tempfile.TemporaryDirectory() as folder:
        dense, path = Path(folder) / "dense.onnx", Path(folder) / "slim.onnx"
        to_onnx(compiled.dense, dense, opset=None, metadata={})
        to_onnx(compiled.small, path, opset=None, metadata={})
        error = check_onnx(path, compiled.small, other_batches(compiled.small, (2,), 0))
        latency = compare("onnxruntime", dense, path, first_sample(compiled.dense), threads=1, budget_s=10)
        right, whole = (evaluate.accuracy(evaluate.onnx_predictor(file), test) for file in (path, dense))
    return {
        "net": name,
        "cut": cut,
        "effort": effort,
        "accuracy": round(right, 4),
        "dense_accuracy": round(whole, 4),
        "macs": [compiled.dense_cost.macs, compiled.slim_cost.macs],
        "processor_s": round(spent, 1),
        "seconds": round(took, 1),
        "allocate": compiled.met.allocate if compiled.met else None,
        "widths": compiled.plan.widths,
        "silent": [compiled.coupling.groups[number].name for number in compiled.plan.silent],
        "onnx_max_rel_error": error,
        "latency": asdict(latency),
    } | provenance()


def _compiled(model: nn.Module, inputs: torch.Tensor, cut: float, effort: str) -> Compiled:
    example = (inputs[:2],)
    if effort == PEER_NAME:
        recipe = Recipe.of(multiple_of=1, **PEER)
        return compile_model(model, example, recipe.but(ratio=ratio_for(cut, model, example, recipe)))
    recipe = Recipe.of(of="macs", ratio=1 - 1 / cut, effort=effort, data=Divided((inputs,)))
    return compile_model(model, example, recipe, progress=lambda text: print("   ", text, flush=True))


# -- rows and tables ------------------------------------------------------------------------------------------------

Key = tuple[str, float, str]


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["net"], row["cut"], row["effort"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    save_rows(path, rows.values())
    lines = "".join(f"{_line(row)}\n" for row in rows.values())
    foot = "".join(f"- {stamp}\n" for stamp in sorted({summary(row) for row in rows.values()}))
    path.with_suffix(".md").write_text(_HEAD + lines + "\n" + foot)


_HEAD = f"""# Efforts

{(__doc__ or "").partition("from the .json")[2].strip()}

Accuracy in %; *faster*: the ONNX file against that of the dense net, one example, one thread, in turns, with the 95 %
interval; *processor*: seconds of the whole compilation on one thread. Written by `benchmarks/effort.py`.

| net | dense | multiply-adds | effort | accuracy | faster | processor | chosen |
|---|---|---|---|---|---|---|---|
"""


def _line(row: dict[str, Any]) -> str:
    latency = row["latency"]
    cells = [
        *(row["net"], f"{100 * row['dense_accuracy']:.2f}", f"{row['macs'][0] / row['macs'][1]:.2f}x fewer"),
        *(row["effort"], f"{100 * row['accuracy']:.2f}"),
        f"{latency['speedup']:.2f} ({latency['speedup_low']:.2f}-{latency['speedup_high']:.2f})",
        *(f"{row['processor_s']:.0f}", row["allocate"] or "the same ratio"),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--efforts", nargs="*", default=[PEER_NAME, *EFFORTS], choices=[PEER_NAME, *EFFORTS])
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "effort.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keys = [(name, cut, effort) for name in given.nets for cut in CASES[name].cuts for effort in given.efforts]
    for key in [] if given.table else keys:
        if key not in read_rows(given.out):
            row = row_of(*key)
            write_rows(given.out, read_rows(given.out) | {key: row})
            print(_line(row), flush=True)
    write_rows(given.out, read_rows(given.out))


if __name__ == "__main__":
    main()
