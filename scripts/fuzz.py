"""The driver of scripts/fuzz: random nets by their numbers, on several processes."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cheaper_processes import collect_less_often, read_onnx_operators_once
from file_fuzzing import KINDS, FileFuzzer, Read
from fuzzing import Failure, fuzz
from hostile_commands import run_hostile
from provenance import provenance
from randomlaws import Case, Outcome

ROUND = 50  # nets between two lines of progress


@dataclass
class Tally:
    """What was found among ``nets``; ``free``: the free share of each net that was slimmed."""

    nets: int = 0
    no_net: int = 0
    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("refused", "laws", "steps", "pins")}
    )
    free: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, case: Case, outcome: Outcome) -> None:
        if outcome.status == "invalid":
            self.no_net += 1
            return
        self.nets += 1
        self.counts["steps"].update(case.net.steps)
        if outcome.status == "refused":
            self.counts["refused"][outcome.reason] += 1
            return
        self.free.append(round(outcome.free, 3))
        self.counts["laws"].update(outcome.laws)
        self.counts["pins"].update({f"{op or 'user'}: {why}": n for (op, why), n in outcome.pins.items()})

    def merge(self, other: Tally) -> None:
        self.nets += other.nets
        self.no_net += other.no_net
        self.free += other.free
        self.failures += other.failures
        for name, counter in other.counts.items():
            self.counts[name].update(counter)

    def summary(self) -> dict[str, Any]:
        levels = ("p10", "p25", "p50", "p75", "p90")
        spread = np.quantile(self.free or [0.0], [0.1, 0.25, 0.5, 0.75, 0.9]).round(3).tolist()
        counts = {name: dict(counter.most_common(70)) for name, counter in self.counts.items()}
        return {
            "nets": self.nets,
            "proven": len(self.free),
            "refused": counts["refused"],
            "failures": [{"number": f.number, "error": f.error, "net": repr(f.case)} for f in self.failures],
            "free_share": dict(zip(levels, spread, strict=True)) | {"mean": round(float(np.mean(self.free or [0])), 3)},
            "laws_applied": counts["laws"],
            "steps": counts["steps"],
            "pinned_channels_by_reason": counts["pins"],
            "drawn_but_no_net": self.no_net,
        }


def run_round(numbers: range) -> Tally:
    warnings.simplefilter("ignore")
    read_onnx_operators_once()
    collect_less_often()
    tally = Tally()
    tally.failures += fuzz(numbers, tally.add)
    tally.nets += len(tally.failures)
    gc.unfreeze()  # else libraries take what is frozen for leaks when the process ends
    return tally


def rounds(first: int, nets: int, jobs: int) -> Iterator[Tally]:
    numbers = [range(i, min(i + ROUND, first + nets)) for i in range(first, first + nets, ROUND)]
    if jobs == 1:
        yield from map(run_round, numbers)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_round, numbers)


def read_files(asked: argparse.Namespace) -> int:
    """Reads changed files, all kinds in turn, in this process and its copies."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ends, bad, started = Counter[str](), list[Read](), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        fuzzer = FileFuzzer(Path(folder), slimmed=0.3)
        for kind in KINDS:
            if (read := fuzzer.run_valid(kind)).answer != "0":
                bad.append(read)
        for number in range(asked.files):
            kind = list(KINDS)[number % len(KINDS)]
            read = fuzzer.run(kind, asked.seed * 10_000_000 + number)
            ends[f"{kind}: {read.answer if read.fine else 'bad'}"] += 1
            if not read.fine:
                bad.append(read)
                print(f"\nFAILED: {read.kind} {read.number}: {read.answer}\n{read.said}", flush=True)
            if number % 100 == 99:
                print(f"{number + 1} files, {len(bad)} failed, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    found = {
        "seed": asked.seed,
        "files": ends.total(),
        "seconds": round(time.perf_counter() - started),
        "exit_codes": dict(sorted(ends.items())),
        "failures": [f"{read.kind} {read.number}: {read.answer}" for read in bad],
    }
    if asked.json:
        asked.json.write_text(json.dumps(provenance() | found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 1 if bad else 0


def open_hostile(asked: argparse.Namespace) -> int:
    """Opens each hostile file by the command."""
    rows, bad = list[dict[str, Any]](), list[str]()
    for ended in run_hostile():
        rows.append(asdict(ended))
        if not ended.fine:
            bad.append(ended.name)
        print(
            f"{ended.name:34} exit {ended.exit_code}, {ended.cpu_s:5.1f} s of processor, {ended.wall_s:5.1f} s, "
            f"{ended.peak_bytes / 1e9:.2f} GB{'' if ended.fine else f'  BAD: {ended.said}'}",
            flush=True,
        )
    found = {"files": len(rows), "rows": rows, "failures": bad}
    if asked.json:
        asked.json.write_text(json.dumps(provenance() | found, indent=1) + "\n")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Slims random networks and holds each result against laws.")
    parser.add_argument("--nets", type=int, default=1000, help="how many are drawn")
    parser.add_argument("--files", type=int, help="read so many changed files of all kinds instead")
    parser.add_argument("--hostile", action="store_true", help="open the files made to hang or fill memory instead")
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other nets")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="where the summary goes")
    asked = parser.parse_args()
    if asked.hostile:
        return open_hostile(asked)
    if asked.files is not None:
        return read_files(asked)
    total, started = Tally(), time.perf_counter()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends with what was found so far
        for tally in rounds(asked.seed * 10_000_000, asked.nets, asked.jobs):
            total.merge(tally)
            for failure in tally.failures:
                print(f"\nFAILED (net {failure.number}): {failure.error}\n{failure.case}", flush=True)
            counts = f"{total.nets} nets, {len(total.free)} proven, {sum(total.counts['refused'].values())} refused"
            seconds = time.perf_counter() - started
            print(f"{counts}, {len(total.failures)} failed, {seconds:.0f} s", file=sys.stderr, flush=True)
    found = {"seed": asked.seed, "seconds": round(time.perf_counter() - started), "jobs": asked.jobs} | total.summary()
    if asked.json:
        asked.json.write_text(json.dumps(provenance() | found, indent=1) + "\n")
    print(json.dumps(found | {"failures": len(total.failures)}, indent=1))
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
