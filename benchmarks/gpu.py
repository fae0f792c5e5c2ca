"""Dense and slim on a GPU: eager, CUDA graphs and torch.compile; fp32, fp16 and bf16; batch 1 to 256.

python benchmarks/gpu.py                            writes results/gpu.json and .md; what they hold is not run again
python benchmarks/gpu.py --only vit_b_16 --cuts 0.5 --batches 1 64 --runtimes pytorch-cudagraph
python benchmarks/gpu.py --device cpu --only resnet18 --batches 1 --dtypes float32 --out /somewhere/try.json

One call ends after ``--minutes``, and the next goes on where it stopped: the rows come in the order of what they tell,
so that a short loan of a GPU gives a table of its own. Nothing is read from a network. Where there is no GPU it says so
and measures nothing; ``--device cpu`` tries the script without one.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

from provenance import RESULTS, provenance, summary
from real_models import enliven
from slim_model.api import slim
from slim_model.measuring.energy_meter import METERS, measure_energy
from slim_model.measuring.runtimes import RUNTIMES
from slim_model.measuring.timing import measure
from stored_rows import load_rows, save_rows

MODELS = ("resnet50", "vit_b_16", "mobilenet_v2", "tf_efficientnet_lite0")
CUTS = (0.5, 0.75)
"""Shares of the multiply-adds that go."""
STEPS = (8, 16, 32, 64, 1)
"""What widths are multiples of; 1: whatever comes out. All but the first are tried with the first cut alone."""
BATCHES = (64, 1, 8, 256)
DTYPES = ("float16", "float32", "bfloat16")
_EACH_S = 2.0


class Key(NamedTuple):
    """What a row tells of, in the order of its weight."""

    model: str
    cut: float
    step: int
    runtime: str
    dtype: str
    batch: int


@functools.cache
def dense_model(name: str) -> nn.Module:
    """torchvision's, or timm's where torchvision has none of that name."""
    torch.manual_seed(0)
    if name in torchvision.models.list_models():
        return enliven(torchvision.models.get_model(name, weights=None))
    return enliven(importlib.import_module("timm").create_model(name, pretrained=False))


@functools.cache
def small_model(name: str, cut: float, step: int) -> tuple[nn.Module, float]:
    """The slim model, and how many times fewer multiply-adds it has."""
    made = slim(dense_model(name), torch.randn(2, 3, 224, 224), of="macs", ratio=cut, multiple_of=step)
    return made.module, made.report.dense["macs"] / made.report.slim["macs"]


def row_of(key: Key, device: str) -> dict[str, Any]:
    """One row. What cannot be run (out of memory, a kernel that is missing) is a row with its reason."""
    row: dict[str, Any] = key._asdict()
    row |= {"tf32": {"conv": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32}}
    try:
        dense, (small, times) = dense_model(key.model), small_model(key.model, key.cut, key.step)
        kind = getattr(torch, key.dtype)
        row |= {"macs_times": times}
        inputs = [torch.randn(key.batch, 3, 224, 224).to(kind)]
        pair = [copy.deepcopy(module).to(kind) for module in (dense, small)]
        found = measure(key.runtime, pair, inputs, budget_s=_EACH_S)[1]
        row |= {"verdict": found.verdict, "latency": asdict(found)}
        row |= {"peak_bytes": [_peak(module, inputs[0]) for module in pair] if device == "cuda" else None}
        row |= {"joules": _joules(key, pair, inputs, device)}
    except Exception as error:
        row |= {"fault": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
    torch._dynamo.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
    return row | provenance()


def _peak(module: nn.Module, x: torch.Tensor) -> int:
    """Bytes on the GPU at their most, in eager PyTorch, weights and inputs included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        module.cuda()(x.cuda())
    return int(torch.cuda.max_memory_allocated())


def _joules(key: Key, pair: list[nn.Module], inputs: list[torch.Tensor], device: str) -> list[dict[str, Any]] | None:
    """Of a run of each, at the batch that fills a GPU."""
    if key.batch != BATCHES[0]:
        return None
    meter, runtime = METERS[device], RUNTIMES[key.runtime]
    prepared = (functools.partial(runtime.prepare, module, inputs, 1) for module in pair)
    return [asdict(measure_energy(meter, prepare, least_s=_EACH_S / 2)) for prepare in prepared]


# -- rows and tables ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {Key(*(row[name] for name in Key._fields)): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows)]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def _latency(row: dict[str, Any], which: str) -> str:
    found = row["latency"][which]
    return f"{found['median_ms']:.3g} ({found['p10_ms']:.3g}-{found['p90_ms']:.3g})"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "cut": lambda r: f"{r['cut']:.0%} of MACs",
    "widths in steps of": lambda r: str(r["step"]),
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
    "realised": lambda r: f"{r['latency']['speedup'] / r['macs_times']:.2f}",
    "peak MB": lambda r: " -> ".join(f"{n / 1e6:,.0f}" for n in r["peak_bytes"] or ()),
    "mJ an image": lambda r: " -> ".join(
        f"{1e3 * found['joules'] / r['batch']:.3g}" for found in r["joules"] or () if found["joules"] is not None
    ),
    "shown": lambda r: r["verdict"],
}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    good, faults = [r for r in rows if "latency" in r], [r for r in rows if "fault" in r]
    yield from ("# Dense and slim on a GPU", "", "Written by `benchmarks/gpu.py`; 224x224, random weights.", "")
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    yield from ("| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in good)
    if faults:
        yield from ("", "## What did not run", "")
        yield from (f"- {', '.join(str(r[name]) for name in Key._fields)}: {r['fault']}" for r in faults)
    stamps = {f"{', '.join(row['environment']['devices']) or 'no GPU'}; {summary(row)}" for row in rows}
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted(stamps)))


def keys_of(given: argparse.Namespace, runtimes: list[str]) -> Iterator[Key]:
    """First one batch of one type for every model and cut, then the other types, batches and runtimes, then steps."""
    for batch, runtime, dtype in itertools.product(given.batches, runtimes, given.dtypes):
        for model, cut in itertools.product(given.only, given.cuts):
            yield Key(model, cut, STEPS[0], runtime, dtype, batch)
    for step, model in itertools.product(given.steps, given.only):
        yield Key(model, given.cuts[0], step, runtimes[0], given.dtypes[0], given.batches[0])


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="NAME", help="torchvision's names")
    parser.add_argument("--cuts", nargs="+", type=float, default=list(CUTS))
    parser.add_argument("--steps", nargs="*", type=int, default=list(STEPS[1:]))
    parser.add_argument("--runtimes", nargs="+", metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--minutes", type=float, default=7.5, help="no row is begun after that")
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
    wanted = [key for key in dict.fromkeys(keys_of(given, names)) if given.again or key not in rows]
    for done, key in enumerate(wanted):
        if time.monotonic() - started > 60 * given.minutes:
            print(f"{len(wanted) - done} rows are left for another call", flush=True)
            break
        rows[key] = row_of(key, given.device)
        write_rows(given.out, rows)
        cells = [cell(rows[key]) for cell in COLUMNS.values()] if "latency" in rows[key] else [*key, rows[key]["fault"]]
        print(*cells, sep="  ", flush=True)


if __name__ == "__main__":
    main()
