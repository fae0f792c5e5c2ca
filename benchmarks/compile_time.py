"""Seconds from a model to a verified ONNX file: this tool against Torch-Pruning + torch.onnx.export + onnxruntime.

python benchmarks/compile_time.py                       all that follows -> results/compile_time.json and .md
python benchmarks/compile_time.py --only resnet50 vit_b_16
python benchmarks/compile_time.py --parts compare       of: compare, couple, memory, analysis
python benchmarks/compile_time.py --cold                the first run of a process, as a command is

Both sides take turns, every run in a process of its own, on the same model with the same weights. What is not timed
is alike for both: importing, building the model and, unless --cold, one run of a tiny net through the same path.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from provenance import RESULTS, peak_bytes, provenance, summary
from real_models import enliven
from slim_model.coupling.attention_heads import couple_attention
from slim_model.coupling.couple import couple
from slim_model.export.check_onnx import check_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.simplifying.simplify import simplify
from stored_rows import load_rows, save_rows

GOALS = ("resnet50", "vgg16_bn", "densenet121", "vit_b_16")
"""Here the ratio shall be at most 1.0."""
OTHERS = ("mobilenet_v2", "swin_t")
RATIO = 0.5
COUPLE_GOALS = {"resnet50": 0.1, "swin_t": 2.0}  # seconds
ANALYSIS = ("fcos_resnet50_fpn", "swin_t", "maxvit_t", "fasterrcnn_resnet50_fpn")
"""Where the peer is slow, or gives no answer: from a model to what its channels depend on."""
MEMORY = ("resnet50", "vgg16_bn")
SIDES = ("slim-model", "torch-pruning")


class TimeUp(BaseException):
    """No Exception, so that whoever catches those does not go on."""


class Laps:
    """Seconds of wall clock and of processor, stage by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = {}
        self._stage = ""
        self._begun = self._started = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def __call__(self, stage: str) -> None:
        """``stage`` begins; the one before ends."""
        now = self._now()
        if self._stage:
            spent = self.stages.setdefault(self._stage, [0.0, 0.0])
            self.stages[self._stage] = [a + b - c for a, b, c in zip(spent, now, self._begun, strict=True)]
        self._stage, self._begun = stage, now

    def end(self) -> dict[str, Any]:
        self("")
        wall, cpu = (round(now - then, 3) for now, then in zip(self._begun, self._started, strict=True))
        stages = {stage: [round(x, 3) for x in spent] for stage, spent in self.stages.items()}
        return {"seconds": wall, "cpu_seconds": cpu, "stages": stages}


# -- the two sides --------------------------------------------------------------------------------------------------


def ours(model: nn.Module, inputs: Tensor, target: Path) -> dict[str, Any]:
    """What the command does between reading the file and measuring."""
    laps = Laps()
    recipe = Recipe.of(ratio=RATIO)
    compiled = compile_model(model, (inputs,), recipe, progress=laps)
    laps("making the small module")
    make_small_module(model, compiled.small)
    laps("writing ONNX")
    to_onnx(compiled.small, target, opset=None, metadata={})
    laps("checking ONNX")
    error = check_onnx(target, compiled.small, onnx_batches(compiled.small, recipe.seed))
    return laps.end() | {"params": compiled.slim_cost.params, "error": error}


def theirs(model: nn.Module, inputs: Tensor, target: Path) -> dict[str, Any]:
    """Torch-Pruning 1.6.1 with its defaults, then the exporter with its defaults and one comparison of outputs."""
    import torch_pruning

    laps = Laps()
    laps("pruning")
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    classes = model(inputs).shape[-1]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=RATIO,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes],
        num_heads=heads,
    )
    pruner.step()
    if hasattr(model, "hidden_dim"):  # torchvision's vit checks its width against this
        model.hidden_dim = model.conv_proj.out_channels
    laps("writing ONNX")
    doubled = torch.cat([inputs, inputs])
    program = torch.onnx.export(
        model, (doubled,), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
    )
    program.save(str(target))
    laps("checking ONNX")
    tried = torch.randn(3, *inputs.shape[1:])
    with torch.no_grad():
        expected = model(tried).numpy()
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: tried.numpy()})
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    return laps.end() | {"params": sum(p.numel() for p in model.parameters()), "error": error}


RUNS: dict[str, Callable[[nn.Module, Tensor, Path], dict[str, Any]]] = {"slim-model": ours, "torch-pruning": theirs}


def our_analysis(model: nn.Module, inputs: Any) -> int:
    """Trace and label analysis; returns how many channels may go."""
    return couple_attention(simplify(trace(model, (inputs,)))).free


def their_analysis(model: nn.Module, inputs: Any) -> int:
    """The peer's graph of dependencies; returns how many modules are in it."""
    import torch_pruning

    return len(torch_pruning.DependencyGraph().build_dependency(model, inputs).module2node)


ANALYSES: dict[str, Callable[[nn.Module, Any], int]] = {"slim-model": our_analysis, "torch-pruning": their_analysis}


def build(name: str) -> tuple[nn.Module, Any]:
    import torchvision

    torch.manual_seed(0)
    if name.endswith("_fpn"):
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None, min_size=224, max_size=256)
        return model.eval(), [torch.rand(3, 224, 224)]
    model = enliven(torchvision.models.get_model(name, weights=None), batches=1)
    return model, torch.randn(1, 3, 224, 224)


def tiny() -> tuple[nn.Module, Tensor]:
    """Brings in what the paths import when they are first used."""
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 10)).eval(), torch.randn(1, 3, 16, 16)


# -- one run, in a process of its own -------------------------------------------------------------------------------


def worker(task: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(task["threads"])
    if task["part"] == "couple":
        return _couple(task["model"])
    if task["part"] == "save":
        model, _ = build(task["model"])
        torch.save(model, task["source"])
        return {"bytes": sum(p.numel() * p.element_size() for p in model.parameters())}
    if task["part"] == "analysis":
        return _analysis(task)
    run = RUNS[task["side"]]
    model, inputs = build(task["model"])
    with tempfile.TemporaryDirectory() as folder, _silent():
        if not task["cold"]:
            run(*tiny(), Path(folder) / "tiny.onnx")
        with _limit(task["limit"]):
            try:
                found = run(model, inputs, Path(folder) / "out.onnx")
            except TimeUp:
                return {"fault": f"no answer in {task['limit']} s"}
            except Exception as error:
                return {"fault": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return found | {"peak_bytes": peak_bytes()}


def _couple(name: str) -> dict[str, Any]:
    """The label analysis alone: the graph is there already."""
    model, inputs = build(name)
    small, picture = tiny()
    with _silent():
        couple(simplify(trace(small, (picture,))))
        graph = simplify(trace(model, (inputs,)))
    seconds, cpu_seconds = [], []
    for _ in range(7):
        started, worked = time.perf_counter(), time.process_time()
        found = couple(graph)
        seconds.append(round(time.perf_counter() - started, 4))
        cpu_seconds.append(round(time.process_time() - worked, 4))
    counts = {"nodes": len(list(graph.nodes)), "labels": len(found.component)}
    return {"seconds": seconds, "cpu_seconds": cpu_seconds} | counts


def _analysis(task: dict[str, Any]) -> dict[str, Any]:
    run = ANALYSES[task["side"]]
    model, inputs = build(task["model"])
    with _silent():
        run(*tiny())
        started, worked = time.perf_counter(), time.process_time()
        try:
            with _limit(task["limit"], of_processor=True):
                found = run(model, inputs)
        except TimeUp:
            return {"fault": f"no answer in {task['limit']} s of processor"}
        except Exception as error:
            return {"fault": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    return {name: round(value, 2) for name, value in spent.items()} | {"found": found}


@contextlib.contextmanager
def _limit(seconds: int, *, of_processor: bool = False) -> Iterator[None]:
    def up(*_: Any) -> None:
        raise TimeUp

    kind, timer = (signal.SIGPROF, signal.ITIMER_PROF) if of_processor else (signal.SIGALRM, signal.ITIMER_REAL)
    signal.signal(kind, up)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def in_process(task: dict[str, Any]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        command = [sys.executable, __file__, "--worker", json.dumps(task | {"answer": answer.name})]
        patience = task.get("patience", task["limit"] + 120)
        try:
            # a call that never comes back to Python does not see the alarm
            code = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=patience).returncode
        except subprocess.TimeoutExpired:
            return {"fault": f"no answer in {patience} s"}
        text = answer.read()
    return json.loads(text) if text else {"fault": f"the process ended with code {code}"}


# -- the parts ------------------------------------------------------------------------------------------------------


def compare(names: list[str], rounds: int, *, cold: bool, threads: int, limit: int) -> Iterator[list[dict[str, Any]]]:
    """What is known after each round of both sides, who goes first in turns; a side that gave no answer is not asked
    again."""
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {(name, side): [] for name in names for side in SIDES}
    for number in range(rounds):
        for name in names:
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                taken = samples[name, side]
                if any("fault" in sample for sample in taken):
                    continue
                task = {"part": "compare", "side": side, "model": name, "cold": cold, "limit": limit}
                taken.append(in_process(task | {"threads": threads}))
                print(f"{name:14} {side:14} {_said(taken[-1])}", flush=True)
        yield [_compared(name, *(samples[name, side] for side in SIDES), cold=cold, limit=limit) for name in names]


def _said(sample: dict[str, Any]) -> str:
    if "fault" in sample:
        return sample["fault"]
    stages = ", ".join(f"{stage} {wall:.2f} ({cpu:.2f})" for stage, (wall, cpu) in sample["stages"].items())
    return f"{sample['seconds']:6.2f} s ({sample['cpu_seconds']:.2f} s of processor): {stages}"


def _compared(
    name: str, own: list[dict[str, Any]], other: list[dict[str, Any]], *, cold: bool, limit: int
) -> dict[str, Any]:
    row = {"part": "compare", "model": name, "cold": cold, "limit_s": limit, "goal": 1.0 if name in GOALS else None}
    row |= {"slim-model": _side(own), "torch-pruning": _side(other)}
    ours_s, theirs_s = row["slim-model"].get("median_s"), row["torch-pruning"].get("median_s")
    pairs = [a["seconds"] / b["seconds"] for a, b in zip(own, other, strict=False) if "seconds" in a and "seconds" in b]
    return row | {
        "ratio": round(ours_s / theirs_s, 3) if ours_s and theirs_s else None,
        "ratio_of_rounds": [round(pair, 3) for pair in pairs],
    }


def _side(samples: list[dict[str, Any]]) -> dict[str, Any]:
    good = [sample for sample in samples if "fault" not in sample]
    faults = [sample["fault"] for sample in samples if "fault" in sample]
    if faults or not good:
        return {"fault": faults[0] if faults else "not run"}
    stages = {
        stage: [
            round(statistics.median(sample["stages"].get(stage, (0, 0))[kind] for sample in good), 3) for kind in (0, 1)
        ]
        for stage in good[0]["stages"]
    }
    return {
        "median_s": round(statistics.median(x["seconds"] for x in good), 3),
        "seconds": [x["seconds"] for x in good],
        "median_cpu_s": round(statistics.median(x["cpu_seconds"] for x in good), 3),
        "stages": stages,
        "params": good[0]["params"],
        "error": max(x["error"] for x in good),
        "peak_bytes": max(x["peak_bytes"] for x in good),
    }


def label_analysis(threads: int) -> list[dict[str, Any]]:
    rows = []
    for name, goal in COUPLE_GOALS.items():
        found = in_process({"part": "couple", "model": name, "threads": threads, "limit": 600})
        row = {"part": "couple", "model": name, "goal_s": goal, **found}
        if "fault" not in found:
            row |= {"median_s": statistics.median(found["seconds"]), "first_s": found["seconds"][0]}
        rows.append(row)
        print(f"{name:14} label analysis {row.get('median_s', row.get('fault'))} s (goal {goal})", flush=True)
    return rows


def analysis(names: list[str], threads: int, limit: int) -> Iterator[dict[str, Any]]:
    for name in names:
        row: dict[str, Any] = {
            "part": "analysis",
            "model": name,
            "limit_s": limit,
            "load": round(os.getloadavg()[0], 1),
        }
        for side in SIDES:
            task = {"part": "analysis", "side": side, "model": name, "threads": threads, "limit": limit}
            # the limit is of processor, which a busy machine hands out slowly
            row[side] = in_process(task | {"patience": 10 * limit})
            print(f"{name:24} {side:14} {row[side]}", flush=True)
        yield row


def memory() -> list[dict[str, Any]]:
    """Peak memory of the command itself, with and without measuring latency."""
    rows = []
    for name in MEMORY:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.pt"
            # built elsewhere: what this process holds would count as the peak of those it starts
            task = {"part": "save", "model": name, "source": str(source), "threads": 1, "limit": 600}
            dense = in_process(task)["bytes"]
            for flag in ("--no-bench", "--bench"):
                command = [sys.executable, "-m", "slim_model", "in.pt", "out.onnx", "--ratio", str(RATIO), flag]
                code, peak = _peak_of(command, folder)
                limit = 3 * dense + 1_500_000_000
                row = {"part": "memory", "model": name, "flag": flag, "dense_bytes": dense, "goal_bytes": limit}
                rows.append(row | ({"peak_bytes": peak} if code == 0 else {"fault": f"exit code {code}"}))
                print(f"{name:14} {flag:10} peak {peak / 1e6:,.0f} MB (goal {limit / 1e6:,.0f})", flush=True)
    return rows


def _peak_of(command: list[str], folder: str) -> tuple[int, int]:
    """Exit code and peak resident bytes of a command run in ``folder``."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# -- tables ---------------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["# Time to a verified ONNX file, label analysis, memory", ""]
    lines += ["Written by `benchmarks/compile_time.py`; what the columns mean stands in `benchmarks/README.md`.", ""]
    for cold, title in ((False, "warm: the process ran a tiny net before"), (True, "cold: first run of a process")):
        chosen = [row for row in rows if row["part"] == "compare" and row["cold"] is cold]
        if chosen:
            lines += [
                f"## Compile time, {title}",
                "",
                *_compare_table(chosen),
                "",
                "Stages, median seconds (of processor):",
                "",
            ]
            lines += [f"- {row['model']}, {side}: {_stages(row[side])}" for row in chosen for side in SIDES]
            lines += [""]
    chosen = [row for row in rows if row["part"] == "couple"]
    if chosen:
        lines += ["## Label analysis alone", ""]
        lines += ["| model | nodes | labels | first, s | median of 7, s | processor, s | goal, s |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [
            f"| {r['model']} | {r['nodes']:,} | {r['labels']:,} | {r['first_s']:.3f} | {r['median_s']:.3f} "
            f"| {statistics.median(r['cpu_seconds']):.3f} | {r['goal_s']}, {_met(r['median_s'] <= r['goal_s'])} |"
            for r in chosen
            if "fault" not in r
        ]
        lines += [""]
    chosen = [row for row in rows if row["part"] == "memory"]
    if chosen:
        lines += ["## Peak memory of the command", "", "| model | option | dense, MB | peak, MB | goal, MB |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {r['model']} | `{r['flag']}` | {r['dense_bytes'] / 1e6:,.0f} | {r['peak_bytes'] / 1e6:,.0f} "
            f"| {r['goal_bytes'] / 1e6:,.0f}, {_met(r['peak_bytes'] < r['goal_bytes'])} |"
            for r in chosen
            if "fault" not in r
        ]
        lines += [""]
    chosen = [row for row in rows if row["part"] == "analysis"]
    if chosen:
        lines += ["## From a model to what depends on what", "", "| model | slim-model, s (of processor) "]
        lines[-1] += "| Torch-Pruning, s (of processor) | limit, s | load of the machine |"
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {r['model']} | {_analysed(r['slim-model'])} | {_analysed(r['torch-pruning'])} | {r['limit_s']} "
            f"| {r['load']} |"
            for r in chosen
        ]
        lines += [""]
    faults = [row for row in rows if "fault" in row]
    lines += [f"Fault: {row['part']} of {row['model']}: {row['fault']}." for row in faults]
    return lines + ["## Measured on", "", *(f"- {stamp}" for stamp in sorted({_stamp(row) for row in rows}))]


def _compare_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | slim-model, s | Torch-Pruning + export + check, s | ratio (of each round) | goal | processor, s "
        "| params, M | peak, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own, other = (row[side] for side in SIDES)
        pairs = ", ".join(f"{pair:.2f}" for pair in row["ratio_of_rounds"])
        ratio = f"**{row['ratio']:.2f}** ({pairs})" if row["ratio"] else ""
        goal = f"≤ 1, {_met(row['ratio'] <= 1)}" if row["goal"] and row["ratio"] else ""
        both = [
            " / ".join(f"{side[key] / unit:{digits}}" if key in side else "-" for side in (own, other))
            for key, unit, digits in (("median_cpu_s", 1, ".1f"), ("params", 1e6, ".2f"), ("peak_bytes", 1e6, ",.0f"))
        ]
        cells = [row["model"], _median(own), _median(other), ratio, goal, *both]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _analysed(side: dict[str, Any]) -> str:
    return side["fault"] if "fault" in side else f"{side['seconds']:.1f} ({side['cpu_seconds']:.1f})"


def _median(side: dict[str, Any]) -> str:
    if "fault" in side:
        return side["fault"]
    return f"{side['median_s']:.2f} ({', '.join(f'{x:.2f}' for x in side['seconds'])})"


def _stages(side: dict[str, Any]) -> str:
    if "fault" in side:
        return side["fault"]
    return ", ".join(f"{stage} {wall:.2f} ({cpu:.2f})" for stage, (wall, cpu) in side["stages"].items())


def _met(fact: bool) -> str:
    return "met" if fact else "missed"


def _stamp(row: dict[str, Any]) -> str:
    return f"{summary(row)}; {row['threads']} thread" + "s" * (row["threads"] != 1)


# -- the command line -----------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """New rows take the place of old ones of the same part, model, mode and option."""
    identity = lambda row: tuple(str(row.get(key)) for key in ("part", "model", "cold", "flag"))  # noqa: E731
    kept = {identity(row): row for row in load_rows(path)}
    kept |= {identity(row): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_rows(path, kept.values())
    path.with_suffix(".md").write_text("\n".join(tables(list(kept.values()))) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time slim-model and Torch-Pruning from a model to checked ONNX.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of torchvision's models")
    parser.add_argument("--parts", nargs="+", choices=("compare", "couple", "memory", "analysis"), default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="no tiny net runs through the path before")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on both sides")
    parser.add_argument("--limit", type=int, default=150, help="seconds a side may take")
    parser.add_argument("--out", type=Path, default=RESULTS / "compile_time.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        task = json.loads(given.worker)
        Path(task["answer"]).write_text(json.dumps(worker(task)))
        return
    parts = given.parts or ("compare", "couple", "memory", "analysis")
    stamp = provenance() | {"threads": given.threads}
    if "couple" in parts:
        write(given.out, [row | stamp for row in label_analysis(given.threads)])
    if "memory" in parts:
        write(given.out, [row | stamp for row in memory()])
    if "analysis" in parts:
        for row in analysis(given.only or list(ANALYSIS), given.threads, given.limit):
            write(given.out, [row | stamp])
    if "compare" in parts:
        options = {"cold": given.cold, "threads": given.threads, "limit": given.limit}
        for rows in compare(given.only or [*GOALS, *OTHERS], given.rounds, **options):
            write(given.out, [row | stamp for row in rows])


if __name__ == "__main__":
    main()
