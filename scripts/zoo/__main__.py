"""Every model people have, through trace, coupling, proof and export; one JSON line a model, resumed where it stopped.

python scripts/zoo torchvision             all builders that are not quantised
python scripts/zoo timm                    the smallest model of each family; --all: every registered one
python scripts/zoo transformers recurrent  small configurations of the usual architectures
python scripts/zoo libraries               of packages that are installed: YOLO, segmentation, medical, super-resolution
python scripts/zoo trained                 published weights, on photographs
python scripts/zoo --table                 only write the table again
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]

from one import Builder, Row, examine  # noqa: E402
from tables import write_tables  # noqa: E402

from provenance import RESULTS, peak_bytes, provenance  # noqa: E402

_FORK = multiprocessing.get_context("fork")
FAMILIES = ("torchvision", "timm", "transformers", "recurrent", "libraries", "trained")


def builders(family: str, *, every: bool = False) -> dict[str, Builder]:
    module = importlib.import_module(f"{family}_models")
    if family != "timm":
        return module.MODELS
    return module.models(module.smallest_first() if every else module.one_each())


def one(family: str, name: str, given: argparse.Namespace) -> Row:
    """The row of a model, from a process of its own: its memory is its own, and a crash ends one model only. It is a
    fork of this one, which has imported all that takes long to import."""
    head = {"family": family, "model": name}
    answer, ours = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=worker, args=(ours, family, name, given.ratio, given.seed))
    process.start()
    ours.close()
    try:
        if answer.poll(given.minutes * 60):
            return head | answer.recv()
        process.kill()
        return head | {"fault": f"no answer within {given.minutes} minutes", "stage": "", "crash": True}
    except EOFError:
        process.join()
        return head | {"fault": f"the process ended with code {process.exitcode}", "crash": True}
    finally:
        process.join()


def worker(answer: Connection, family: str, name: str, ratio: float, seed: int) -> None:
    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    module = importlib.import_module(f"{family}_models")
    builder = module.models([name])[name] if family == "timm" else module.MODELS[name]
    answer.send(
        examine(builder, ratio, seed, trained=family == "trained") | {"peak_bytes": peak_bytes()} | provenance()
    )


def read(path: Path) -> dict[tuple[str, str], Row]:
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {(row["family"], row["model"]): row for row in rows}


def write(path: Path, rows: dict[tuple[str, str], Row]) -> None:
    order = sorted(rows, key=lambda key: (FAMILIES.index(key[0]), key[1]))
    path.write_text("".join(json.dumps(rows[key]) + "\n" for key in order))
    write_tables(path.with_suffix(".md"), [rows[key] for key in order])


def wanted(given: argparse.Namespace, done: Any) -> list[tuple[str, str]]:
    keys = [(family, name) for family in given.families for name in builders(family, every=given.all)]
    chosen = [key for key in keys if any(fnmatch.fnmatch(key[1], pattern) for pattern in given.only)]
    if given.faults:
        done = {key: row for key, row in done.items() if not row.keys() & {"fault", "onnx_fault"}}
    return [key for key in chosen if given.again or key not in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="names of models")
    parser.add_argument("--all", action="store_true", help="timm: every registered model")
    parser.add_argument("--again", action="store_true", help="also models that are in the results already")
    parser.add_argument("--faults", action="store_true", help="again those that ended in a fault, of ONNX too")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=int, default=15, help="after which a model is given up")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo.json")
    given = parser.parse_args()
    if unknown := set(given.families) - set(FAMILIES):
        parser.error(f"{', '.join(unknown)}: no such family; there are {', '.join(FAMILIES)}")
    given.families = given.families or list(FAMILIES)
    torch.set_num_threads(1)  # a fork takes no threads along
    rows = read(given.out)
    keys = [] if given.table else wanted(given, rows)
    with ThreadPoolExecutor(given.jobs) as pool:
        found = pool.map(lambda key: (key, one(*key, given)), keys)
        for number, (key, row) in enumerate(found, 1):
            rows[key] = row
            write(given.out, rows)
            print(f"{number}/{len(keys)} {line(row)}", flush=True)
    write(given.out, rows)


def line(row: Row) -> str:
    if "fault" in row:
        return f"{row['model']:32} {row.get('stage', '')}: {row['fault'][:150]}"
    onnx = f"{row['onnx_max_rel_error']:.0e}" if "onnx_max_rel_error" in row else "no"
    seconds = sum(row["seconds"].values())
    shown = f"free {row['free_share_proven']:.0%} error {row['layer_max_rel_error']:.0e} onnx {onnx} {seconds:.0f} s"
    return f"{row['model']:32} {shown}"


if __name__ == "__main__":
    main()
