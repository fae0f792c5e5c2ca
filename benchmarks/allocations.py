"""How much each allocation leaves of a trained net's accuracy at the same multiply-adds, with the same criterion.

python benchmarks/allocations.py                       what results/allocations.json does not hold yet
python benchmarks/allocations.py --criteria l1 --again

ResNet-56 on CIFAR-10 with its published weights, affine recovery, nothing retrained; accuracy is that of the written
ONNX file on all 10,000 test images. Sensitivity scans are kept in results/ and drawn beside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import datasets
from evaluate import accuracy, load_published, onnx_predictor
from provenance import RESULTS, provenance, summary
from slim_model.budget.allocations import ALLOCATIONS
from slim_model.export.to_onnx import to_onnx
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe
from stored_rows import load_rows, save_rows

CRITERIA = ("reconstruction", "l1")
TIMES = 2.1
"""Fewer multiply-adds than the dense net."""
SAMPLES = 1024

Key = tuple[str, str]


def measured(criterion: str, allocate: str, data: Any, test: datasets.Split) -> dict[str, Any]:
    model = load_published("resnet56")
    scan = RESULTS / f"sensitivity_{criterion}.jsonl" if allocate == "sensitivity" else None
    started = time.perf_counter()
    recipe = Recipe.of(
        ratio=1 - 1 / TIMES,
        criterion=criterion,
        of="macs",
        allocate=allocate,
        scan=scan,
        data=data,
        samples=SAMPLES,
        multiple_of=1,
        recover="affine",
    )
    compiled = compile_model(model, (torch.randn(2, 3, 32, 32),), recipe)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.onnx"
        to_onnx(compiled.small, path, opset=None, metadata={})
        right = accuracy(onnx_predictor(path), test)
    row: dict[str, Any] = {
        "criterion": criterion,
        "allocate": allocate,
        "accuracy": right,
        "seconds": round(seconds, 1),
    }
    row |= {"macs_times": compiled.dense_cost.macs / compiled.slim_cost.macs}
    row |= {"params_times": compiled.dense_cost.params / compiled.slim_cost.params}
    row |= {"widths": [list(pair) for pair in compiled.plan.widths], "samples": SAMPLES}
    return row | provenance()


def training(samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of the training part, in batches."""
    split = datasets.cifar10("train", norm=datasets.IMAGENET_NORM)
    rows = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(0))[:samples]
    return [(split.inputs[part], split.labels[part]) for part in rows.split(64)]


# -- rows and tables ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["criterion"], row["allocate"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows)]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    criteria = sorted({row["criterion"] for row in rows})
    yield from (f"# Allocations at {TIMES} times fewer multiply-adds", "")
    yield "Written by `benchmarks/allocations.py`: ResNet-56 on CIFAR-10 (dense 93.39 %), affine recovery;"
    yield from (
        "accuracy of the ONNX file on all 10,000 test images, in %; seconds to compile, next to other runs.",
        "",
    )
    yield "| allocation | " + " | ".join(f"{c} | s" for c in criteria) + " |"
    yield "|" + "---|" * (1 + 2 * len(criteria))
    for name in ALLOCATIONS:
        own = {row["criterion"]: row for row in rows if row["allocate"] == name}
        cells = [f"{100 * own[c]['accuracy']:.2f} | {own[c]['seconds']:.0f}" if c in own else " | " for c in criteria]
        yield f"| {name} | " + " | ".join(cells) + " |"
    for picture in sorted(RESULTS.glob("sensitivity_*.svg")):
        yield from ("", f"What each layer alone can give ({picture.stem[12:]}):", "", f"![]({picture.name})")
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted({summary(row) for row in rows})))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--only", nargs="+", default=list(ALLOCATIONS))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "allocations.json")
    given = parser.parse_args()
    rows = read_rows(given.out)
    if not given.table:
        data, test = training(SAMPLES), datasets.cifar10("test", norm=datasets.IMAGENET_NORM)
        for key in [(c, a) for c in given.criteria for a in given.only]:
            if given.again or key not in rows:
                rows[key] = measured(*key, data, test)
                write_rows(given.out, rows)
                print(*key, f"{rows[key]['accuracy']:.2%} at {rows[key]['macs_times']:.2f}x", flush=True)
    write_rows(given.out, rows)


if __name__ == "__main__":
    main()
