"""What a user waits for, the start of the process included: the answers of the command line, and a whole run.

    python benchmarks/whole_command.py [--rounds 7]

Each command is a process of its own. The run (resnet50 at half of its channels, no latency measured, one thread) is
paired with the peer's whole process: Torch-Pruning's pruner, ``torch.onnx.export`` with dynamo, one comparison in
onnxruntime. Both go in turns, each first every other time; the table has medians and the median of the ratios. Python
finds the bytecode of all packages, as an installation leaves it: a first call, which does not count, writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision

from provenance import RESULTS, provenance, summary
from real_models import enliven

ANSWERS = {"--help": ["--help"], "--version": ["--version"], "a usage error": []}
PEER = """
import numpy as np, onnxruntime, torch, torch_pruning as tp
model, x = torch.load("in.pt", weights_only=False).eval(), torch.randn(1, 3, 224, 224)
classes = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
importance = tp.importance.MagnitudeImportance(p=1)
tp.pruner.MagnitudePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=classes).step()
free = ({0: torch.export.Dim.DYNAMIC},)
program = torch.onnx.export(model, (torch.cat([x, x]),), dynamo=True, dynamic_shapes=free, verbose=False)
program.save("peer.onnx")
tried = torch.randn(3, 3, 224, 224)
with torch.no_grad():
    expected = model(tried).numpy()
session = onnxruntime.InferenceSession("peer.onnx", providers=["CPUExecutionProvider"])
(got,) = session.run(None, {session.get_inputs()[0].name: tried.numpy()})
assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
"""
SLIM = [sys.executable, "-m", "slim_model"]


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds of wall clock and of processor that the process took."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | settings, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):  # 2: the usage error
        raise SystemExit(f"{' '.join(command)[:80]}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return {"wall": wall, "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.save(enliven(torchvision.models.resnet50(weights=None)).eval(), folder / "in.pt")
        for name, arguments in ANSWERS.items():
            timed([*SLIM, *arguments], folder)
            taken = [timed([*SLIM, *arguments], folder) for _ in range(rounds)]
            yield {"what": name} | {key: statistics.median(one[key] for one in taken) for key in ("wall", "processor")}
        sides = {
            "slim-model": [*SLIM, "in.pt", "out.onnx", "--no-bench"],
            "torch-pruning": [sys.executable, "-c", PEER],
        }
        taken_by: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for name in sides:
            timed(sides[name], folder)
        for number in range(rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                taken_by[name].append(timed(sides[name], folder))
        for name, taken in taken_by.items():
            medians = {key: statistics.median(one[key] for one in taken) for key in ("wall", "processor")}
            yield {"what": f"resnet50, {name}"} | medians
        pairs = list(zip(taken_by["slim-model"], taken_by["torch-pruning"], strict=True))
        yield {"what": "ratio"} | {
            key: statistics.median(ours[key] / theirs[key] for ours, theirs in pairs) for key in ("wall", "processor")
        }


def table(found: list[dict[str, Any]], origin: dict[str, Any]) -> str:
    lines = ["# Whole commands, the start of the process included", ""]
    lines += ["| | seconds by the clock | seconds of processor |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['wall']:.2f} | {row['processor']:.2f} |" for row in found]
    return "\n".join([*lines, "", f"One thread. {summary(origin)}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    found, origin = [], provenance()
    for row in rows(given.rounds):
        print(f"{row['what']:28} {row['wall']:7.2f} s by the clock, {row['processor']:7.2f} s of processor", flush=True)
        found.append(row)
    (RESULTS / "whole_command.json").write_text(json.dumps({"rows": found} | origin, indent=1) + "\n")
    (RESULTS / "whole_command.md").write_text(table(found, origin))


if __name__ == "__main__":
    main()
