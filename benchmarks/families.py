"""What each family of compression gave: channels, ranks, int8, distillation, and all of them, on trained nets.

python benchmarks/families.py                                what results/families.json does not hold yet
python benchmarks/families.py --nets lenet300 --families int8 all
python benchmarks/families.py --time-again                   only time again what is there, on a quiet machine
python benchmarks/families.py --table                        only the .md, from the .json

Half of the multiply-adds go in each row where some go, by one recipe: ranked by reconstruction on training samples
without labels, shared out by the net's allocation, recovered at ``full``. Distillation trains the pruned net with the
dense one as teacher, without labels. int8 is the form that is fastest here, and is also written where it is slower.
Accuracy is that of the written ONNX file on all test samples, by which nothing was chosen; latency is that of the file,
one sample, one thread, in turns with the dense one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import datasets
import nets
from evaluate import accuracy, load_published, onnx_predictor
from provenance import RESULTS, ROOT, provenance, summary
from slim_model.commands.int8 import make_int8
from slim_model.cost.counted import cost
from slim_model.coupling.attention_heads import couple_attention
from slim_model.data.datasets import Divided
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph
from slim_model.pipeline.compile import compile_model
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from slim_model.training.resume import Resume
from stored_rows import load_rows, save_rows
from train import trained
from written_files import in_turns

FILES = ROOT / "build" / "families"
SAMPLES = 1000
"""That ranking, recovery and int8 read; training reads all that the case has."""
_INT8 = {"int8": True, "int8_anyway": True}
_RANKS = {"low_rank": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "pruning": {},
    "low rank": _RANKS | {"widths": False},
    "pruning, low rank": _RANKS,
    "int8": _INT8,
    "pruning, distillation": {"distill": True},
    "all": _RANKS | _INT8 | {"distill": True},
}
"""Options of the recipe; ``distill`` stands for the epochs of the case. int8 alone removes nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """``most``: training samples that are read at most; ``epochs`` of distillation, with these ``options``."""

    load: Callable[[], nn.Module]
    split: Callable[[str], datasets.Split]
    allocate: str = "damage"
    epochs: int = 3
    most: int = 60_000
    options: dict[str, Any] = field(default_factory=dict)


def _cifar10(split: str) -> datasets.Split:
    return datasets.cifar10(split, norm=datasets.IMAGENET_NORM)


CASES = {
    "lenet300": Case(trained("lenet300_fashion", nets.LeNet300), datasets.fashion_mnist),
    "fashion": Case(trained("fashion", nets.FashionNet), datasets.fashion_mnist, options={"lr": 0.002, "batch": 64}),
    "text": Case(trained("text", nets.TextNet), datasets.imdb, options={"lr": 0.0003, "batch": 32}),
    "vit_mnist": Case(lambda: load_published("vit_mnist"), datasets.mnist, epochs=1, most=20_000),
    "resnet56": Case(lambda: load_published("resnet56"), _cifar10, "judged", 3, options={"batch": 128}),
    "efficientnet_lite0": Case(lambda: nets.efficientnet_lite(0), datasets.imagenet, "judged"),
}


def row_of(name: str, family: str) -> dict[str, Any]:
    """One net by one family: what the file of it is."""
    case = CASES[name]
    model, started = case.load(), time.process_time()
    learned = case.split("train").inputs
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(0))[: case.most]
    inputs = learned[order]
    recipe, dense, small = recipe_of(case, family, inputs), *files_of(name, family)
    dense.parent.mkdir(parents=True, exist_ok=True)
    graph, facts = _small(model, inputs, recipe, family, Resume(small.with_suffix(".finetune")))
    to_onnx(capture(model, (inputs[:2],)), dense, opset=None, metadata={})
    to_onnx(graph, small, opset=None, metadata={})
    if recipe.quantizing.int8:
        int8, _ = make_int8(small, small.with_suffix(".int8"), graph, recipe, _said)
        facts |= {"int8": {"form": int8.form or int8.why, "fp32_layers": len(int8.fp32_layers)}}
        if int8.written:
            small.with_suffix(".int8").replace(small)
    spent, test = time.process_time() - started, case.split("test")
    right, whole = (accuracy(onnx_predictor(file), test, batch=50) for file in (small, dense))
    return {
        "net": name,
        "family": family,
        **facts,
        "bytes": [file.stat().st_size for file in (dense, small)],
        "accuracy": round(right, 4),
        "dense_accuracy": round(whole, 4),
        "tested": len(test.labels),
        "latency": _timed(name, family),
        "processor_s": round(spent, 1),
    } | provenance()


def recipe_of(case: Case, family: str, inputs: Tensor) -> Recipe:
    options = dict(FAMILIES[family])
    if options.pop("distill", False):
        options |= {"finetune": case.epochs, "alpha": 1.0} | case.options
    return Recipe.of(
        of="macs",
        ratio=0.5,
        criterion="reconstruction",
        allocate=case.allocate,
        recover="full",
        data=Divided((inputs,)),
        samples=SAMPLES,
        **options,
    )


def _small(
    model: nn.Module, inputs: Tensor, recipe: Recipe, family: str, resume: Resume
) -> tuple[Graph, dict[str, Any]]:
    """The graph that is written in fp32, and what there is to say of it."""
    if family == "int8":
        graph = capture(model, (inputs[:2],))
        return graph, {"macs": [cost(couple_attention(graph)).macs] * 2, "factored": 0, "allocate": None}
    compiled = compile_model(model, (inputs[:2],), recipe, resume=resume, progress=_said)
    resume.remove(recipe.budget.iterations)
    return compiled.small, {
        "macs": [compiled.dense_cost.macs, compiled.slim_cost.macs],
        "factored": len(compiled.small.factored),
        "allocate": compiled.met.allocate if compiled.met else None,
        "masked_error": compiled.proof.masked_max_rel_error,
    }


def files_of(name: str, family: str) -> tuple[Path, Path]:
    """Where the dense and the small file stay, so that they can be timed again."""
    return FILES / f"{name}.onnx", FILES / f"{name}_{family.replace(', ', '_').replace(' ', '_')}.onnx"


def _timed(name: str, family: str) -> dict[str, Any]:
    return in_turns(*files_of(name, family), (CASES[name].split("test").inputs[:1],))


def _said(text: str) -> None:
    print("   ", text, flush=True)


# -- rows and tables ---------------------------------------------------------------------------------------------------

Key = tuple[str, str]


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["net"], row["family"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[name, family] for name in CASES for family in FAMILIES if (name, family) in rows]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("# What each family gave", "", *(__doc__ or "").partition("from the .json\n\n")[2].splitlines(), "")
    yield "Accuracy in %; *faster*: times the dense file's speed, with its 95 % interval; size: a share of that file's."
    yield from ("", "| net | family | accuracy | dense | faster | size | multiply-adds | layers factored | int8 |")
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from (_line(row) for row in rows)
    missing = [name for name in CASES if not all(_has(rows, name, family) for family in FAMILIES)]
    yield from ("", f"Not run yet, or in part: {', '.join(missing)}." if missing else "", "")
    yield from (f"- {line}" for line in dict.fromkeys(map(summary, rows)))


def _has(rows: list[dict[str, Any]], name: str, family: str) -> bool:
    return any((row["net"], row["family"]) == (name, family) for row in rows)


def _line(row: dict[str, Any]) -> str:
    latency, (before, after), (dense, small) = row["latency"], row["macs"], row["bytes"]
    int8 = row.get("int8")
    kept = f", {int8['fp32_layers']} layers in fp32" if int8 and int8["fp32_layers"] else ""
    cells = [
        *(row["net"], row["family"], f"{100 * row['accuracy']:.2f}", f"{100 * row['dense_accuracy']:.2f}"),
        f"{latency['speedup']:.2f} ({latency['speedup_low']:.2f}-{latency['speedup_high']:.2f})",
        f"{small / dense:.3f}",
        f"{before / after:.2f}x fewer" if before != after else "all",
        str(row["factored"] or ""),
        f"{int8['form']}{kept}" if int8 else "",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--again", action="store_true", help="also rows that are there already")
    parser.add_argument("--time-again", action="store_true", help="only time again what is there, on a quiet machine")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "families.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for key in [] if given.table else [(name, family) for name in given.nets for family in given.families]:
        known = read_rows(given.out).get(key)
        if given.time_again:
            row = known | {"latency": _timed(*key)} if known and files_of(*key)[1].exists() else known
        elif known and not given.again:
            continue
        else:
            row = row_of(*key)
        if row:
            write_rows(given.out, read_rows(given.out) | {key: row})
            print(_line(row), flush=True)
    write_rows(given.out, read_rows(given.out))


if __name__ == "__main__":
    main()
