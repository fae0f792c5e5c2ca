"""Torch-Pruning's default output and ours at the same multiply-adds, in onnxruntime: dense, theirs and ours in turns.

python benchmarks/against.py                what results/against.json does not hold yet
python benchmarks/against.py --only resnet50 --ratios 0.3 --threads 1

Torch-Pruning removes the ratio of every layer with its own defaults (magnitude, widths not rounded). We are given its
count of multiply-adds as ``--target macs=`` and nothing else. A quiet machine is needed.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
import torchvision
from torch import nn

from provenance import RESULTS, provenance, summary
from real_models import enliven
from slim_model.cost.counted import cost
from slim_model.coupling.couple import couple
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.trace import trace
from slim_model.measuring.timing import measure
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe
from slim_model.simplifying.simplify import simplify
from stored_rows import load_rows, save_rows

MODELS = ("resnet50", "mobilenet_v2")
RATIOS = (0.3, 0.45, 0.6)
GOAL = 1.3
EXAMPLE = (2, 3, 224, 224)

Key = tuple[str, float, int]


def theirs(model: nn.Module, ratio: float) -> nn.Module:
    """Torch-Pruning as its README calls it: group magnitude, the classifier left alone."""
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            torch.randn(EXAMPLE),
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=ignored,
        )
        pruner.step()
    return model


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return enliven(torchvision.models.get_model(name, weights=None))


def measured(name: str, ratio: float, threads: list[int]) -> Iterator[tuple[Key, dict[str, Any]]]:
    example = (torch.randn(EXAMPLE),)
    peer = simplify(trace(theirs(built(name), ratio), example))
    macs = cost(couple(peer)).macs
    ours = compile_model(built(name), example, Recipe.of(target=f"macs={macs}"))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{which}.onnx" for which in ("dense", "theirs", "ours")]
        for graph, path in zip((ours.dense, peer, ours.small), paths, strict=True):
            to_onnx(graph, path, opset=None, metadata={})
        for count in threads:
            _, tp_found, our_found = measure(
                "onnxruntime", paths, [torch.randn(1, *EXAMPLE[1:])], threads=count, budget_s=15
            )
            (pair,) = measure("onnxruntime", paths[1:], [torch.randn(1, *EXAMPLE[1:])], threads=count, budget_s=12)[1:]
            row = {"model": name, "ratio": ratio, "threads": count, "dense_macs": ours.dense_cost.macs}
            row |= {"theirs_macs": macs, "ours_macs": ours.slim_cost.macs}
            row |= {"theirs": asdict(tp_found), "ours": asdict(our_found), "ours_over_theirs": asdict(pair)}
            yield (name, ratio, count), row | {"torch_pruning": tp.__version__} | provenance()


# -- rows and tables ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["model"], row["ratio"], row["threads"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows)]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("# Against Torch-Pruning at equal multiply-adds", "")
    yield from ("Written by `benchmarks/against.py`; batch 1, onnxruntime; medians, all three in turns.", "")
    heads = ["model", "its ratio", "threads", "MACs, theirs / ours", "dense ms", "theirs ms", "ours ms"]
    heads += ["theirs against dense", "ours against dense", "**ours against theirs** (95 %)", "goal 1.3x"]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for r in rows:
        pair = r["ours_over_theirs"]
        cells = [r["model"], f"{r['ratio']:g}", str(r["threads"])]
        cells += [f"{r['theirs_macs'] / 1e6:,.0f} M / {r['ours_macs'] / 1e6:,.0f} M"]
        cells += [f"{r['ours']['dense']['median_ms']:.2f}"]
        cells += [f"{r[who]['slim']['median_ms']:.2f}" for who in ("theirs", "ours")]
        cells += [f"{r[who]['speedup']:.2f}x" for who in ("theirs", "ours")]
        cells += [f"**{pair['speedup']:.2f}x** ({pair['speedup_low']:.2f}-{pair['speedup_high']:.2f})"]
        yield "| " + " | ".join([*cells, "met" if pair["speedup"] >= GOAL else "missed"]) + " |"
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted({summary(row) for row in rows})))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="NAME", help="torchvision's names")
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "against.json")
    given = parser.parse_args()
    rows = read_rows(given.out)
    for name in [] if given.table else given.only:
        for ratio in given.ratios:
            wanted = [n for n in given.threads if given.again or (name, ratio, n) not in rows]
            for key, row in measured(name, ratio, wanted) if wanted else ():
                rows[key] = row
                write_rows(given.out, rows)
                print(*key, f"{row['ours_over_theirs']['speedup']:.2f}x faster than theirs", flush=True)
    write_rows(given.out, rows)


if __name__ == "__main__":
    main()
