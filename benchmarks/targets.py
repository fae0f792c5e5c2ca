"""--target latency: what was asked, what the table predicted, what the search measured, and a measurement of its own.

python benchmarks/targets.py                what results/targets.json does not hold yet
python benchmarks/targets.py --only resnet18 --shares 0.5 --threads 1

Each run is the real command from a file. Targets are shares of the dense model's latency, measured first. Afterwards
the written file is timed again, in turns with the dense one. A quiet machine is needed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision

from provenance import RESULTS, provenance, summary
from real_models import enliven
from slim_model.commands.slim import run_job
from slim_model.errors import SlimError
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.trace import trace
from slim_model.loading.source import Source, SourceOptions
from slim_model.measuring.timing import measure
from slim_model.progress import say_nothing
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from slim_model.simplifying.simplify import simplify
from stored_rows import load_rows, save_rows

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "vit_b_16")
SHARES = (0.75, 0.5, 0.3)
CLOSE = 0.05

Key = tuple[str, float, int]


def measured(name: str, wanted: list[tuple[float, int]], folder: Path) -> Iterator[tuple[Key, dict[str, Any]]]:
    torch.manual_seed(0)
    model = enliven(torchvision.models.get_model(name, weights=None))
    source, dense, small = folder / f"{name}.pt", folder / "dense.onnx", folder / "small.onnx"
    torch.save(model, source)
    to_onnx(simplify(trace(model, (torch.randn(2, 3, 224, 224),))), dense, opset=None, metadata={})
    inputs = [torch.randn(1, 3, 224, 224)]
    for share, threads in wanted:
        (alone,) = measure("onnxruntime", [dense], inputs, threads=threads)
        target = round(share * alone.dense.median_ms, 2)
        row: dict[str, Any] = {"model": name, "share": share, "threads": threads, "target_ms": target}
        started = time.perf_counter()
        recipe = Recipe.of(target=f"latency={target}ms", threads=threads, bench=False)
        try:
            report = run_job(Job(Source(source, SourceOptions(inputs=("1x3x224x224",))), small, recipe), say_nothing)
        except SlimError as refused:
            yield (name, share, threads), row | {"refused": str(refused)} | provenance()
            continue
        row |= {"seconds": round(time.perf_counter() - started, 1), "budget": report.budget}
        row |= {"macs_times": report.dense["macs"] / report.slim["macs"]}
        again = measure("onnxruntime", [dense, small], inputs, threads=threads, rounds=100, budget_s=20)[1]
        row |= {"again_ms": again.slim.median_ms, "dense_ms": again.dense.median_ms, "speedup": again.speedup}
        yield (name, share, threads), row | provenance()


# -- rows and tables ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["model"], row["share"], row["threads"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows)]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("# Latency asked for and got", "")
    yield from ("Written by `benchmarks/targets.py`; `--target latency=...`, batch 1, onnxruntime, medians.", "")
    heads = ["model", "threads", "dense ms", "target ms", "first prediction", "measured by the search", "of the target"]
    heads += ["tries", "timed again", "MACs", "faster", "seconds"]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for r in rows:
        if "refused" in r:
            yield f"| {r['model']} | {r['threads']} | | {r['target_ms']:.2f} | {r['refused']} |" + " |" * 7
            continue
        met, trials = r["budget"]["reached"], r["budget"]["trials"]
        cells = [r["model"], str(r["threads"]), f"{r['dense_ms']:.2f}", f"{r['target_ms']:.2f}"]
        cells += [f"{trials[0][0]:.2f} ({trials[0][1]:.2f} measured)", f"{met:.2f}", f"{met / r['target_ms']:.1%}"]
        cells += [str(len(trials)), f"{r['again_ms']:.2f} ({r['again_ms'] / r['target_ms']:.1%})"]
        cells += [f"{r['macs_times']:.2f}x", f"{r['speedup']:.2f}x", f"{r['seconds']:.0f}"]
        yield "| " + " | ".join(cells) + " |"
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted({summary(row) for row in rows})))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="NAME", help="torchvision's names")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "targets.json")
    given = parser.parse_args()
    rows = read_rows(given.out)
    for name in [] if given.table else given.only:
        keys = [(share, n) for n in given.threads for share in given.shares]
        wanted = [key for key in keys if given.again or "budget" not in rows.get((name, *key), {})]
        with tempfile.TemporaryDirectory() as folder:
            for key, row in measured(name, wanted, Path(folder)) if wanted else ():
                rows[key] = row
                write_rows(given.out, rows)
                print(*key, row.get("refused") or f"{row['budget']['reached'] / row['target_ms']:.1%}", flush=True)
    write_rows(given.out, rows)


if __name__ == "__main__":
    main()
