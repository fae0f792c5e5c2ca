"""What ranking costs: evidence in one pass against the plain forward passes, and l1 on ResNet-50.

python benchmarks/evidence.py        writes results/evidence.json; exits 1 where a limit is missed
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision

import datasets
import evaluate
from provenance import RESULTS, provenance
from slim_model.coupling.couple import couple
from slim_model.data.open_data import open_data
from slim_model.graph.trace import trace
from slim_model.ranking.evidence.gather import gather
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify

IMAGES, BATCH, ROUNDS = 1000, 64, 9
STATISTICS = ("zeros", "histogram", "classes")
"""What apoz, entropy and lda read."""
LIMIT_TIMES, LIMIT_S = 1.5, 0.2


def times(actions: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Seconds of each, in turns, after one run of each to warm up: median and fastest of the wall, and median of the
    processor, which other work on the machine disturbs less."""
    wall: dict[str, list[float]] = {name: [] for name in actions}
    used: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(ROUNDS + 1):
        for name, action in actions.items():
            started = time.perf_counter(), time.process_time()
            action()
            if turn:
                wall[name].append(time.perf_counter() - started[0])
                used[name].append(time.process_time() - started[1])
    return {
        name: {
            "wall_s": round(statistics.median(wall[name]), 4),
            "fastest_s": round(min(wall[name]), 4),
            "processor_s": round(statistics.median(used[name]), 4),
        }
        for name in actions
    }


def one_pass() -> dict[str, Any]:
    """apoz + entropy + lda of ResNet-20 on CIFAR-10, against the same graph run on the same batches."""
    split = datasets.cifar10("test", norm=datasets.IMAGENET_NORM)
    net = evaluate.load_published("resnet20")
    coupling = couple(simplify(trace(net, (split.inputs[:2],))))
    batches = [(split.inputs[:IMAGES], split.labels[:IMAGES])]
    data = open_data(batches, coupling.graph.inputs, samples=IMAGES, batch=BATCH)

    def plain() -> None:
        for batch in data.batches():
            coupling.graph.run(batch.inputs)

    found = times({"forward": plain, "evidence": lambda: gather(coupling, data, STATISTICS)})
    ratio = {key: round(found["evidence"][key] / found["forward"][key], 3) for key in found["forward"]}
    return {"net": "resnet20", "images": IMAGES, "batch": BATCH, **found, "times": ratio, "limit": LIMIT_TIMES}


def l1_of_resnet50() -> dict[str, Any]:
    net = torchvision.models.resnet50(weights=None).eval()
    coupling = couple(simplify(trace(net, (torch.randn(2, 3, 64, 64),))))
    found = times({"l1": lambda: score(coupling, "l1"), "l1:fold_bn": lambda: score(coupling, "l1:fold_bn=true")})
    return {"net": "resnet50", **found, "limit_s": LIMIT_S}


def main() -> int:
    torch.set_num_threads(1)
    passes, scoring = one_pass(), l1_of_resnet50()
    found = {"provenance": provenance(), "threads": 1, "rounds": ROUNDS, "one_pass": passes, "scoring": scoring}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "evidence.json").write_text(json.dumps(found, indent=1) + "\n")
    ratio, seconds = passes["times"]["wall_s"], scoring["l1"]["wall_s"]
    print(f"apoz + entropy + lda on {IMAGES} images: {ratio:.2f} x the forward passes (limit {LIMIT_TIMES})")
    print(f"  processor time {passes['times']['processor_s']:.2f} x")
    print(f"l1 on ResNet-50: {seconds:.3f} s (limit {LIMIT_S} s)")
    return int(ratio > LIMIT_TIMES or seconds > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
