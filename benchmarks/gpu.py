"""Dense and slim on a GPU: eager, CUDA graphs and torch.compile; fp32, fp16 and bf16; batch 1 to 256.

python benchmarks/gpu.py                            writes results/gpu.json and .md; what they hold is not run again
python benchmarks/gpu.py --only vit_b_16 --batches 1 64 --runtimes pytorch-cudagraph
python benchmarks/gpu.py --device cpu --only resnet18 --batches 1 --dtypes float32 --out /somewhere/try.json

Where there is no GPU it says so and measures nothing; ``--device cpu`` tries the script without one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from provenance import RESULTS, provenance, summary
from real_models import enliven
from slim_model.api import slim
from slim_model.measuring.runtimes import RUNTIMES
from slim_model.measuring.timing import measure
from stored_rows import load_rows, save_rows

MODELS = ("resnet50", "vit_b_16")
RATIO = 0.5
BATCHES = (1, 8, 32, 64, 128, 256)
DTYPES = ("float32", "float16", "bfloat16")

Key = tuple[str, str, str, int]


def pair(name: str, device: str) -> tuple[nn.Module, nn.Module, float]:
    """The dense model, the slim one, and how many times fewer multiply-adds it has."""
    torch.manual_seed(0)
    dense = enliven(torchvision.models.get_model(name, weights=None))
    made = slim(dense, torch.randn(2, 3, 224, 224), ratio=RATIO, device=device)
    return dense, made.module, made.report.dense["macs"] / made.report.slim["macs"]


def measured(name: str, wanted: list[Key], device: str) -> Iterator[tuple[Key, dict[str, Any]]]:
    dense, small, times = pair(name, device)
    for key in wanted:
        _, runtime, dtype, batch = key
        kind = getattr(torch, dtype)
        row = {"model": name, "runtime": runtime, "dtype": dtype, "batch": batch, "ratio": RATIO, "macs_times": times}
        row |= {"tf32": {"conv": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32}}
        try:
            inputs = [torch.randn(batch, 3, 224, 224).to(kind)]
            found = measure(runtime, [dense.to(kind), small.to(kind)], inputs, budget_s=8)[1]
        except Exception as error:  # out of memory, or a kernel that is missing: the other rows go on
            yield key, row | {"fault": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"} | provenance()
            continue
        finally:
            torch._dynamo.reset()
            if device == "cuda":
                torch.cuda.empty_cache()
        yield key, row | {"verdict": found.verdict, "latency": asdict(found)} | provenance()


# -- rows and tables ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["model"], row["runtime"], row["dtype"], row["batch"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows)]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def _latency(row: dict[str, Any], which: str) -> str:
    found = row["latency"][which]
    return f"{found['median_ms']:.3g} ({found['p10_ms']:.3g}-{found['p90_ms']:.3g})"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "runtime": lambda r: r["runtime"],
    "dtype": lambda r: r["dtype"],
    "batch": lambda r: str(r["batch"]),
    "MACs fewer": lambda r: f"{r['macs_times']:.2f}x",
    "dense, ms (p10-p90)": lambda r: _latency(r, "dense"),
    "slim, ms (p10-p90)": lambda r: _latency(r, "slim"),
    "slim, images/s": lambda r: f"{r['batch'] * 1e3 / r['latency']['slim']['median_ms']:,.0f}",
    "faster (95 %)": lambda r: (
        f"{r['latency']['speedup']:.2f}x ({r['latency']['speedup_low']:.2f}-{r['latency']['speedup_high']:.2f})"
    ),
    "shown": lambda r: r["verdict"],
}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    good, faults = [r for r in rows if "latency" in r], [r for r in rows if "fault" in r]
    yield from ("# Dense and slim on a GPU", "", f"Written by `benchmarks/gpu.py`; ratio {RATIO}, 224x224.", "")
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    yield from ("| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in good)
    if faults:
        yield from ("", "## What did not run", "")
        yield from (f"- {r['model']}, {r['runtime']}, {r['dtype']}, batch {r['batch']}: {r['fault']}" for r in faults)
    stamps = {f"{', '.join(row['environment']['devices']) or 'no GPU'}; {summary(row)}" for row in rows}
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted(stamps)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="NAME", help="torchvision's names")
    parser.add_argument("--runtimes", nargs="+", metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here that PyTorch can use, so nothing was measured. --device cpu tries the script.")
    modules = [r for r in RUNTIMES.values() if r.device == given.device and r.artifact == "module"]
    for row in modules:
        print(f"{row.name}: {row.available() or 'runs here'}", flush=True)
    names = [r.name for r in modules if r.available() is None and r.name in (given.runtimes or RUNTIMES)]
    rows = read_rows(given.out)
    for name in given.only:
        keys = [(name, r, dtype, n) for r in names for dtype in given.dtypes for n in given.batches]
        wanted = [key for key in keys if given.again or key not in rows]
        for key, row in measured(name, wanted, given.device) if wanted else ():
            rows[key] = row
            write_rows(given.out, rows)
            cells = [cell(row) for cell in COLUMNS.values()] if "latency" in row else [*key, row["fault"]]
            print(*cells, sep="  ", flush=True)


if __name__ == "__main__":
    main()
