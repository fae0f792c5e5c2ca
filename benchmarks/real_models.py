"""Run the whole command on real models: proof errors, sizes, accuracy and latency of each, one JSON line a run.

python benchmarks/real_models.py                  what is missing in results/real_models.json
python benchmarks/real_models.py --only resnet50  one model
python benchmarks/real_models.py --latency-only   again the runs that measure latency (on a quiet machine)

Every run is the real path from a file, in a process of its own: ``slim_model.commands.slim.run_job(Job(...))``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import datasets
from evaluate import PUBLISHED, accuracy, onnx_predictor
from provenance import RESULTS, peak_bytes, provenance, summary
from slim_model.commands.slim import run_job
from slim_model.errors import SlimError
from slim_model.loading.load import load
from slim_model.loading.source import Source, SourceOptions
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from stored_rows import load_rows, save_rows
from train import TRAINED

RATIOS = (0.25, 0.5, 0.7)
CRITERION = {0: "l1", 1: "random"}
"""Of each seed."""
BENCHED = (0.5, 0)
"""The (ratio, seed) at which latency is measured; small nets are measured at every ratio."""
NETS = Path(__file__).with_name("nets.py")
TOLERANCE = 1e-4
MINUTES = 30
"""After which a run is given up."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model as a user has it. ``file(folder)`` is where it lies, made in ``folder`` if it is made here."""

    name: str
    file: Callable[[Path], Path]
    weights: str
    arch: str | None = None
    input: str | None = None
    test: Callable[[], datasets.Split] | None = None
    small: bool = False


def trained(name: str, arch: str, test: Callable[[], datasets.Split], input: str | None = None) -> Case:
    """A net of train.py, from its state dict."""

    def file(folder: Path) -> Path:
        path = TRAINED / f"{name}.pt"
        if not path.exists():
            raise FileNotFoundError(f"no {path.name}: run python benchmarks/train.py {name}")
        return path

    return Case(arch, file, "trained by train.py", f"{NETS}:{arch}", input, test, small=True)


def published(name: str, arch: str, input: str | None = None) -> Case:
    """A net whose weights somebody else trained, from their own file."""
    row = PUBLISHED[name]
    path = datasets.data_file
    return Case(name, lambda folder: path(row.weights), "published", f"{NETS}:{arch}", input, row.test, small=True)


def torchvision_model(name: str) -> Case:
    """A pickled module of torchvision with lively random weights. ``--input`` is left to be guessed, but for a fully
    convolutional one, which takes any size."""

    def file(folder: Path) -> Path:
        import torchvision

        torch.manual_seed(0)
        kwargs = {"weights_backbone": None} if name.startswith("fcn") else {}
        if name == "googlenet":
            kwargs["init_weights"] = True
        path = folder / f"{name}.pt"
        torch.save(enliven(torchvision.models.get_model(name, weights=None, **kwargs)), path)
        return path

    return Case(name, file, "random", input="1x3x224x224" if name.startswith("fcn") else None)


CASES = {
    case.name: case
    for case in (
        trained("mnist", "MnistNet", lambda: datasets.mnist("test")),
        trained("fashion", "FashionNet", lambda: datasets.fashion_mnist("test")),
        trained("text", "TextNet", lambda: datasets.imdb("test"), input="1x400:int64"),
        published("resnet20", "cifar_resnet20"),
        published("resnet56", "cifar_resnet56"),
        *map(
            torchvision_model,
            "resnet18 resnet50 vgg16_bn alexnet densenet121 googlenet squeezenet1_0 mobilenet_v2 mobilenet_v3_small "
            "shufflenet_v2_x1_0 efficientnet_b0 regnet_y_400mf resnext50_32x4d convnext_tiny vit_b_16 swin_t "
            "fcn_resnet50".split(),
        ),
        published("vit_mnist", "vit_mnist", input="1x1x28x28"),
    )
}


@torch.no_grad()
def enliven(model: nn.Module, *, side: int = 224, batches: int = 3) -> nn.Module:
    """Give fresh weights what training gives: nothing is zero or the same for all channels, and BatchNorm knows
    the statistics of its inputs (random pictures). Else a lost bias or a wrong channel would change no output.
    """
    for name, tensor in model.named_parameters():
        if "layer_scale" in name:  # 1e-6 in a fresh convnext: its blocks would add nothing
            tensor.uniform_(0.1, 0.5)
        elif bool((tensor == 0).all()):  # biases, and the head of vit
            tensor.normal_(0, 0.05)
        elif bool((tensor == 1).all()):  # scales of norms
            tensor.uniform_(0.5, 1.5)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    model.train()
    for _ in range(batches if norms else 0):
        model(torch.randn(8, 3, side, side))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


# -- one run, in a process of its own -------------------------------------------------------------------------------


def one_run(case: Case, source: Path, ratio: float, seed: int, *, bench: bool, threads: int) -> dict[str, Any]:
    """The row of results of one run of the command."""
    torch.set_num_threads(threads)
    row: dict[str, Any] = {
        "model": case.name,
        "weights": case.weights,
        "ratio": ratio,
        "seed": seed,
        "criterion": CRITERION[seed],
    }
    inputs = (case.input,) if case.input else ()
    recipe = Recipe.of(ratio, CRITERION[seed], seed=seed, bench=bench, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.onnx"
        job = Job(Source(source, SourceOptions(arch=case.arch, inputs=inputs)), target, recipe)
        started = time.perf_counter()
        try:
            report = run_job(job, lambda stage: None).as_dict()
        except SlimError as error:
            return row | {"fault": f"{type(error).__name__}: {error}".replace(f"{source.parent}{os.sep}", "")}
        except Exception as error:
            traceback.print_exc()
            return row | {"fault": f"crash: {''.join(traceback.format_exception_only(error)).strip()}"}
        row |= {"total_seconds": round(time.perf_counter() - started, 2), "peak_bytes": peak_bytes()}
        row |= _recorded(report)
        if case.test is not None:
            split = case.test()
            dense = load(source, SourceOptions(arch=case.arch, inputs=inputs)).model
            row["accuracy"] = {
                "dense": accuracy(dense, split),
                "slim": accuracy(onnx_predictor(target, threads=threads), split),
                "examples": len(split.labels),
            }
    return row | provenance() | {"threads": threads}


def _recorded(report: dict[str, Any]) -> dict[str, Any]:
    proof = report["proof"]
    errors = {k: proof[k] for k in ("masked_max_rel_error", "layer_max_rel_error", "onnx_max_rel_error")}
    row = {
        "block": report["recipe"]["budget"]["multiple_of"],
        "free_share": report["free_share"],
        "removed_share": report["channels"]["removed_share"],
        "dense": report["dense"],
        "slim": report["slim"],
        **errors,
        "ties": proof["ties"],
        "float64": proof["float64"],
        "batches": proof["batches"],
        "own_class": not any("model is the traced graph" in note for note in report["warnings"]),
        "pinned": _pinned(report["pinned"]),
        "unknown_ops": report["unknown_ops"],
        "warnings": report["warnings"],
        "latency": report["latency"],
        "seconds": report["seconds"],
    }
    if any(not error <= TOLERANCE for error in errors.values()):
        row["fault"] = f"an error is above {TOLERANCE:.0e}"
    return row


def _pinned(pins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Channels kept, by operator and reason; the model's own outputs are left out."""
    counted: dict[tuple[str, str], int] = {}
    for pin in pins:
        if not pin["is_output"]:
            counted[pin["op"], pin["why"]] = counted.get((pin["op"], pin["why"]), 0) + pin["channels"]
    return [{"op": op, "why": why, "channels": channels} for (op, why), channels in counted.items()]


# -- all runs -------------------------------------------------------------------------------------------------------

Key = tuple[str, float, int]


def wanted(case: Case) -> list[tuple[Key, bool]]:
    """The runs of a model, and whether each measures latency."""
    return [
        ((case.name, ratio, seed), (ratio, seed) == BENCHED or (case.small and seed == 0))
        for seed in CRITERION
        for ratio in RATIOS
    ]


def in_process(case: Case, source: Path, key: Key, *, bench: bool, threads: int) -> dict[str, Any]:
    """``one_run`` in a fresh process, so that its peak memory is its own and a crash ends one run only."""
    _, ratio, seed = key
    order = {"source": str(source), "ratio": ratio, "seed": seed, "bench": bench, "threads": threads}
    command = [sys.executable, __file__, "--worker", case.name, json.dumps(order)]
    fallen = {"model": case.name, "weights": case.weights, "ratio": ratio, "seed": seed, "criterion": CRITERION[seed]}
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        environment = os.environ | {"SLIM_MODEL_ANSWER": answer.name}
        try:
            code = subprocess.run(command, env=environment, timeout=MINUTES * 60).returncode
        except subprocess.TimeoutExpired:
            return fallen | {"fault": f"no answer within {MINUTES} minutes"}
        text = answer.read()
    return json.loads(text) if text else fallen | {"fault": f"the process ended with code {code}"}


def worker(name: str, order: dict[str, Any]) -> None:
    source = Path(order.pop("source"))
    row = one_run(CASES[name], source, order.pop("ratio"), order.pop("seed"), **order)
    Path(os.environ["SLIM_MODEL_ANSWER"]).write_text(json.dumps(row))


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["model"], row["ratio"], row["seed"]): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    """In the order of CASES, and the tables beside it."""
    order = {key: n for n, key in enumerate(key for case in CASES.values() for key, _ in wanted(case))}
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(tables(ordered)) + "\n")


# -- tables ---------------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> Iterable[str]:
    good = [row for row in rows if "slim" in row]
    yield "# The command on real models"
    yield ""
    yield "Written by `benchmarks/real_models.py`; what the columns mean stands in `benchmarks/README.md`."
    yield ""
    yield f"{len(rows)} runs of {len({row['model'] for row in rows})} models, {len(_faults(rows))} faults."
    yield from ("", "## Proof and size", "", *_markdown(PROOF, good))
    yield from ("", "## Latency, batch 1", "", *_markdown(LATENCY, _latencies(good)))
    yield from ("", "## Test accuracy before any fine-tuning", "", *_markdown(ACCURACY, _accuracies(good)))
    yield from ("", "## Channels kept, other than outputs of the model", "", *_markdown(KEPT, _kept(good)))
    yield from ("", "## Warnings", "", *(_markdown(WARNINGS, _warnings(good))))
    if _faults(rows):
        yield from ("", "## Faults", "", *_markdown(FAULTS, _faults(rows)))
    stamps = sorted({summary(row) for row in good})
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in stamps))


Columns = dict[str, Callable[[dict[str, Any]], str]]

RUN: Columns = {
    "model": lambda r: r["model"],
    "ratio": lambda r: str(r["ratio"]),
    "criterion, seed": lambda r: f"{r['criterion']}, {r['seed']}",
}
PROOF: Columns = RUN | {
    "channels free": lambda r: f"{r['free_share']:.1%}",
    "removed": lambda r: f"{r['removed_share']:.1%}",
    "params, M": lambda r: _change(r["dense"]["params"] / 1e6, r["slim"]["params"] / 1e6),
    "MACs, M": lambda r: _change(r["dense"]["macs"] / 1e6, r["slim"]["macs"] / 1e6),
    "slim file, MB": lambda r: f"{r['slim']['bytes'] / 1e6:.2f}",
    "masked error": lambda r: f"{r['masked_max_rel_error']:.1e}",
    "layer error": lambda r: f"{r['layer_max_rel_error']:.1e}" + (" (float64)" if r["float64"] else ""),
    "ONNX error": lambda r: f"{r['onnx_max_rel_error']:.1e}",
    "ties": lambda r: f"{r['ties']:,}",
    "own class": lambda r: "yes" if r["own_class"] else "no",
    "seconds": lambda r: f"{sum(r['seconds'].get(k, 0) for k in ('load', 'compile', 'export')):.1f}",
    "peak, MB": lambda r: f"{r['peak_bytes'] / 1e6:,.0f}",
}
LATENCY: Columns = RUN | {
    "runtime": lambda r: f"{r['runtime']}, {r['dense']['threads']} thread" + "s" * (r["dense"]["threads"] != 1),
    "dense, ms (p10-p90)": lambda r: _milliseconds(r["dense"]),
    "slim, ms (p10-p90)": lambda r: _milliseconds(r["slim"]),
    "speedup (95 %)": lambda r: f"{r['speedup']:.2f} ({r['speedup_low']:.2f}-{r['speedup_high']:.2f})",
    "MACs fewer": lambda r: f"{r['macs']:.2f}x",
}
ACCURACY: Columns = RUN | {
    "dense": lambda r: f"{r['accuracy']['dense']:.4f}",
    "slim ONNX": lambda r: f"{r['accuracy']['slim']:.4f}",
    "examples": lambda r: f"{r['accuracy']['examples']:,}",
}
KEPT: Columns = {
    "model": lambda r: r["model"],
    "channels": lambda r: str(r["channels"]),
    "operator": lambda r: f"`{r['op']}`" if r["op"] else "",
    "why": lambda r: r["why"],
}
WARNINGS: Columns = {"warning": lambda r: r["warning"], "runs": lambda r: r["runs"]}
FAULTS: Columns = RUN | {"fault": lambda r: r["fault"].splitlines()[0]}


def _markdown(columns: Columns, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["None."]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]


def _change(dense: float, slim: float) -> str:
    return f"{_three_digits(dense)} → {_three_digits(slim)}"


def _three_digits(value: float) -> str:
    """``1234.5 -> 1,234``, ``12.345 -> 12.3``, ``0.012345 -> 0.0123``"""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _milliseconds(latency: dict[str, Any]) -> str:
    return f"{latency['median_ms']:.3g} ({latency['p10_ms']:.3g}-{latency['p90_ms']:.3g})"


def _latencies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    run_job = ("model", "ratio", "criterion", "seed")
    return [
        {key: row[key] for key in run_job} | {"macs": row["dense"]["macs"] / max(row["slim"]["macs"], 1)} | compared
        for row in rows
        for compared in row["latency"]
    ]


def _accuracies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "accuracy" in row]


def _kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {
        (row["model"], pin["op"], pin["why"]): {"model": row["model"]} | pin for row in rows for pin in row["pinned"]
    }
    return list(found.values())


def _warnings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each warning once, with the models it was said of, and at how many of their runs."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for warning in row["warnings"]:
            models = found.setdefault(warning, {})
            models[row["model"]] = models.get(row["model"], 0) + 1
    return [
        {"warning": warning, "runs": ", ".join(f"{model} ({count})" for model, count in models.items())}
        for warning, models in found.items()
    ]


def _faults(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "fault" in row]


# -- the command line -----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the whole command on real models and record what came of it.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--again", action="store_true", help="also runs that are in the results already")
    parser.add_argument("--latency-only", action="store_true", help="run again those that measure latency, no others")
    parser.add_argument("--no-bench", action="store_true", help="measure no latency")
    parser.add_argument("--table", action="store_true", help="only write the tables again")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "real_models.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker[0], json.loads(given.worker[1]))
    torch.set_num_threads(given.threads)
    rows = read_rows(given.out)
    for case in [] if given.table else [CASES[name] for name in given.only or CASES]:
        todo = [(key, bench and not given.no_bench) for key, bench in wanted(case) if not given.latency_only or bench]
        done = lambda key: key in rows and "fault" not in rows[key]  # noqa: E731
        todo = [(key, bench) for key, bench in todo if given.again or given.latency_only or not done(key)]
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = case.file(Path(folder))
            for key, bench in todo:
                rows[key] = in_process(case, source, key, bench=bench, threads=given.threads)
                write_rows(given.out, rows)
                print(_line(rows[key]), flush=True)
    write_rows(given.out, rows)
    sys.exit(1 if _faults(list(rows.values())) else 0)


def _line(row: dict[str, Any]) -> str:
    start = f"{row['model']:20} {row['ratio']:<5} {row['criterion']:7}"
    if "slim" not in row:
        return f"{start} FAULT {row['fault']}"
    errors = " ".join(f"{row[k]:.1e}" for k in ("masked_max_rel_error", "layer_max_rel_error", "onnx_max_rel_error"))
    speed = " ".join(f"{r['runtime']} {r['speedup']:.2f}x" for r in row["latency"])
    fault = f" FAULT {row['fault']}" if "fault" in row else ""
    fewer = row["dense"]["macs"] / row["slim"]["macs"]
    return (
        f"{start} free {row['free_share']:6.1%} macs {fewer:5.2f}x  errors {errors}"
        f"  {row['total_seconds']:6.1f} s {row['peak_bytes'] / 1e6:6,.0f} MB  {speed}{fault}"
    )


if __name__ == "__main__":
    main()
