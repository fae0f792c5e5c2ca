"""Widths, ranks and both at the same multiply-adds: models of torchvision proven, and what is left of trained nets.

python benchmarks/low_rank.py                                 what results/low_rank.json does not hold yet
python benchmarks/low_rank.py --parts accuracy --nets vit_mnist --again

Proofs: random weights that were made lively (as in real_models.py), half of the multiply-adds, the uniform allocation,
no data. Accuracy: 1,000 training samples (4,000 where the row says so; 800 of ImageNet) without labels, every fifth of
which judges; ``--criterion reconstruction``, the allocation and the recovery of the row; nothing is trained. It is read
in PyTorch on all test samples.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import datasets
import nets
from evaluate import accuracy, load_published
from provenance import RESULTS, peak_bytes, provenance, summary
from real_models import enliven
from slim_model import slim
from stored_rows import load_rows, save_rows
from train import trained

MODELS = ("mobilenet_v2", "resnet50", "vit_b_16", "vgg16_bn")
WAYS: dict[str, dict[str, Any]] = {
    "widths": {},
    "ranks": {"low_rank": True, "widths": False},
    "both": {"low_rank": True},
}


@dataclass(frozen=True, slots=True)
class Case:
    """``allocate``: which layers give how much; ``levels``: of recovery; ``cuts``: times fewer multiply-adds;
    ``samples``: to calibrate, recover and judge on."""

    load: Callable[[], nn.Module]
    split: Callable[[str], datasets.Split]
    allocate: str = "damage"
    levels: tuple[str, ...] = ("affine", "full")
    cuts: tuple[float, ...] = (2.0, 3.0)
    samples: int = 1000


def _cifar10(split: str) -> datasets.Split:
    return datasets.cifar10(split, norm=datasets.IMAGENET_NORM)


CASES = {
    "lenet300": Case(trained("lenet300_fashion", nets.LeNet300), datasets.fashion_mnist),
    "vit_mnist": Case(lambda: load_published("vit_mnist"), datasets.mnist),
    "resnet56": Case(lambda: load_published("resnet56"), _cifar10, "judged", ("full",), (2.0, 2.1, 3.0, 3.5)),
    "resnet56, 4,000": Case(lambda: load_published("resnet56"), _cifar10, "judged", ("blocks",), (2.1, 3.5), 4000),
    "efficientnet_lite0": Case(lambda: nets.efficientnet_lite(0), datasets.imagenet, "judged", ("full",)),
}

Key = tuple[str, str, str, float, str]
"""Part, net, way, times fewer multiply-adds, level of recovery."""


def proven(name: str, way: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = enliven(getattr(torchvision.models, name)().eval(), side=64)
    started = time.perf_counter()
    report = slim(model, torch.randn(1, 3, 224, 224), ratio=0.5, of="macs", allocate="uniform", **WAYS[way]).report
    return {
        "dense": report.dense,
        "slim": report.slim,
        "masked_error": report.proof["masked_max_rel_error"],
        "factored_error": report.proof["factored_max_rel_error"],
        "factored": sum("factored" in group for group in report.groups),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_bytes": peak_bytes(),
    }


@functools.cache
def _samples(name: str) -> tuple[list[torch.Tensor], datasets.Split]:
    """Batches of the training part without labels, and the test part."""
    train = CASES[name].split("train")
    chosen = torch.randperm(len(train.inputs), generator=torch.Generator().manual_seed(0))[: CASES[name].samples]
    return [*train.inputs[chosen].split(100)], CASES[name].split("test")


def left_of(name: str, way: str, cut: float, level: str) -> dict[str, Any]:
    case, (batches, test) = CASES[name], _samples(name)
    model, started = case.load(), time.perf_counter()
    made = slim(
        model,
        batches[0][:2],
        ratio=1 - 1 / cut,
        of="macs",
        multiple_of=1,
        criterion="reconstruction",
        allocate=case.allocate,
        data=batches,
        recover=level,
        **WAYS[way],
    )
    seconds = time.perf_counter() - started
    return {
        "allocate": case.allocate,
        "dense": made.report.dense,
        "slim": made.report.slim,
        "factored": sum("factored" in group for group in made.report.groups),
        "masked_error": made.report.proof["masked_max_rel_error"],
        "dense_accuracy": accuracy(model, test),
        "accuracy": accuracy(made.module, test),
        "seconds": round(seconds, 1),
    }


def keys(parts: list[str], names: list[str]) -> Iterator[Key]:
    if "proofs" in parts:
        yield from (
            ("proofs", name, way, 2.0, "") for name in MODELS for way in WAYS if name in names and way != "widths"
        )
    for name, case in CASES.items() if "accuracy" in parts else ():
        if name in names:
            yield from (
                ("accuracy", name, way, cut, level) for cut in case.cuts for level in case.levels for way in WAYS
            )


def _row(key: Key) -> dict[str, Any]:
    part, name, way, cut, level = key
    result = proven(name, way) if part == "proofs" else left_of(name, way, cut, level)
    return {"part": part, "net": name, "way": way, "cut": cut, "level": level} | result | {"provenance": provenance()}


def _key(row: dict[str, Any]) -> Key:
    return row["part"], row["net"], row["way"], row["cut"], row["level"]


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {_key(row): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in keys(["proofs", "accuracy"], [*MODELS, *CASES]) if key in rows]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ["# Low rank", "", *(__doc__ or "").split("\n\n", 1)[1].splitlines(), ""]
    yield from ["## Proven at half of the multiply-adds", ""]
    yield "| model | what goes | multiply-adds | parameters | factored | factored error | masked error | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in (row for row in rows if row["part"] == "proofs"):
        yield (
            f"| {row['net']} | {row['way']} | {_fewer(row, 'macs')} | {_fewer(row, 'params')} | {row['factored']} | "
            f"{row['factored_error']:.0e} | {row['masked_error']:.0e} | {row['seconds']:.0f} |"
        )
    yield from ["", "## Accuracy without labels", ""]
    yield "In %. *Multiply-adds*: asked for alike of all three."
    yield from [
        "",
        "| net | dense | multiply-adds | allocation | recovery | widths | ranks | both |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {_key(row): row for row in rows}
    for name, case in CASES.items():
        for cut, level in ((cut, level) for cut in case.cuts for level in case.levels):
            three = [found.get(("accuracy", name, way, cut, level)) for way in WAYS]
            if some := [row for row in three if row]:
                said = " | ".join(f"{row['accuracy']:.2%}"[:-1] if row else "" for row in three)
                fewer = ", ".join(dict.fromkeys(_fewer(row, "macs") for row in some))
                dense = f"{some[0]['dense_accuracy']:.2%}"
                yield f"| {name} | {dense} | {fewer} | {some[0]['allocate']} | {level} | {said} |"
    missing = dict.fromkeys(key[1] for key in keys(["proofs", "accuracy"], [*MODELS, *CASES]) if key not in found)
    yield from ["", f"Not run yet, or in part: {', '.join(missing)}." if missing else "", ""]
    yield from (f"- {line}" for line in dict.fromkeys(summary(row["provenance"]) for row in rows))


def _fewer(row: dict[str, Any], what: str) -> str:
    return f"{row['dense'][what] / row['slim'][what]:.2f}x fewer"


def main() -> None:
    parser = argparse.ArgumentParser(description="Widths, ranks and both at the same multiply-adds.")
    parser.add_argument("--parts", nargs="*", default=["proofs", "accuracy"])
    parser.add_argument("--nets", nargs="*", default=[*MODELS, *CASES])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help="of widths, ranks, both")
    parser.add_argument("--again", action="store_true", help="also rows that are there already")
    given = parser.parse_args()
    path = RESULTS / "low_rank.json"
    for key in keys(given.parts, given.nets):
        rows = read_rows(path)
        if (key in rows and not given.again) or key[2] not in given.ways:
            continue
        row = _row(key)
        write_rows(path, read_rows(path) | {key: row})
        print(*key, f"{_fewer(row, 'macs')}", f"{row.get('accuracy', 0):.2%}", f"{row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
