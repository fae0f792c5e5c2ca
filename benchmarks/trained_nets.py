"""Nets that packages ship with trained weights, end to end: what recovery gives back, and measured speed.

python benchmarks/trained_nets.py                         what results/trained_nets.json does not hold yet
python benchmarks/trained_nets.py --nets pesto BeatNet --of latency --effort balanced
python benchmarks/trained_nets.py --table                 only the .md, from the .json

The packages are no dependencies: a net of one that is not installed is left out. Nothing is downloaded. Data has no
labels. The answers of the written ONNX files, dense and small, are compared on 512 samples that are drawn apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from package_nets.table import NETS
from provenance import RESULTS, ROOT, provenance, summary
from slim_model.data.datasets import Divided
from slim_model.effort import EFFORTS
from slim_model.errors import SlimError
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe
from stored_rows import load_rows, save_rows
from written_files import in_turns, written

LEVELS = ("none", "affine", "full", "blocks")
SHARE = 0.25
"""Of the channels of every layer, where levels of recovery are compared."""
TIMES = (1.3, 1.7)
_TEST, _BATCH = 512, 32
FILES = ROOT / "build" / "trained_nets"


class Asked(NamedTuple):
    """``ratio`` of ``of`` is to go: of channels, with this recovery, or of latency, with that of the effort."""

    of: str
    ratio: float
    recover: str | None = None

    def recipe(self, data: Divided, effort: str) -> Recipe:
        own = {"recover": self.recover} if self.recover else {}
        return Recipe.of(of=self.of, ratio=self.ratio, effort=effort, data=data, **own)


LEVELS_ASKED = tuple(Asked("channels", SHARE, level) for level in LEVELS)


def _faster(times: float) -> Asked:
    return Asked("latency", round(1 - 1 / times, 4))


SPEEDS_ASKED = tuple(map(_faster, TIMES))


def row_of(name: str, asked: Asked, effort: str) -> dict[str, Any]:
    """One net, one goal; ``refused`` says why there is no small model."""
    net = NETS[name]
    learned, test = (net.draw(count, np.random.default_rng(seed)) for seed, count in enumerate((net.samples, _TEST)))
    model, row = net.build(), {"net": name, **asked._asdict(), "samples": len(learned), "effort": effort}
    started, wall = time.process_time(), time.perf_counter()
    try:
        compiled = compile_model(model, (learned[:2],), asked.recipe(Divided((learned,)), effort), progress=_said)
    except SlimError as refused:
        return row | {"refused": str(refused), "processor_s": round(time.process_time() - started, 1)} | provenance()
    spent, took = time.process_time() - started, time.perf_counter() - wall
    row |= {"processor_s": round(spent, 1), "seconds": round(took, 1)}
    files = files_of(name, asked)
    row |= written(compiled, *files)
    dense, small = (_answers(file, test) for file in files)
    row |= {"agreement": round(net.same(dense, small), 4), "r2": round(explained(dense, small), 4)}
    return row | ({"latency": in_turns(*files, (test[:1],))} if asked.of == "latency" else {}) | provenance()


def files_of(name: str, asked: Asked) -> tuple[Path, Path]:
    """Where the dense and the small file stay, so that they can be timed again."""
    stem = name.replace(" ", "_").replace(",", "")
    return FILES / f"{stem}.onnx", FILES / f"{stem}_{asked.of}_{asked.ratio:g}_{asked.recover or 'best'}.onnx"


def explained(dense: Sequence[np.ndarray], small: Sequence[np.ndarray]) -> float:
    """The share of what varies from sample to sample in the dense net's outputs that the small net gives: 1 for the
    same, 0 for a net that always gives their mean."""
    wrong = whole = 0.0
    for one, other in zip(dense, small, strict=True):
        spread = float(np.square(one - one.mean(0)).sum())
        wrong, whole = wrong + float(np.square(one - other).sum()), whole + spread
    return 1 - wrong / whole


def _timed_again(name: str, asked: Asked) -> dict[str, Any]:
    files = files_of(name, asked)
    if asked.of != "latency" or not files[1].exists():
        return {}
    return {"latency": in_turns(*files, (NETS[name].draw(1, np.random.default_rng(1)),))}


def _answers(path: Path, test: Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    parts = [session.run(None, {name: part.numpy()}) for part in test.split(_BATCH)]
    return [np.concatenate(parts) for parts in zip(*parts, strict=True)]


def _said(text: str) -> None:
    print("   ", text, flush=True)


# -- rows and tables ---------------------------------------------------------------------------------------------------

Key = tuple[str, Asked]


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    return {(row["net"], Asked(row["of"], row["ratio"], row["recover"])): row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[Key, dict[str, Any]]) -> None:
    order = {(name, asked): n for n, (name, asked) in enumerate(_keys(NETS, ("channels", "latency")))}
    ordered = [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    found = {(row["net"], Asked(row["of"], row["ratio"], row["recover"])): row for row in rows}
    names = [name for name in NETS if any(row["net"] == name for row in rows)]
    yield from ("# Trained nets of packages", "", "Written by `benchmarks/trained_nets.py`.", "")
    about = ([name, NETS[name].package, NETS[name].task, NETS[name].data] for name in names)
    yield from _markdown(["net", "package", "what it tells", "fed with"], about)
    yield from ("", "## A quarter of the channels of every layer gone: r2 of the outputs, by recovery", "")
    yield from _markdown(["net", *LEVELS], _levels(names, found))
    yield from ("", "## Asked for a measured speed", "")
    yield from ("`best` fits the whole network as the last step; `balanced` leaves that and the blocks out.", "")
    heads = ["net", "asked", "effort", "measured", "multiply-adds", "agreement", "counted", "r2", "processor, s"]
    yield from _markdown(heads, _speeds(names, found))
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted({summary(row) for row in rows})))


def _levels(names: list[str], found: dict[Key, dict[str, Any]]) -> Iterator[list[str]]:
    for name in names:
        row = [found.get((name, asked)) for asked in LEVELS_ASKED]
        if any(row):
            yield [name, *("" if one is None else "refused" if "refused" in one else f"{one['r2']:.3f}" for one in row)]


def _speeds(names: list[str], found: dict[Key, dict[str, Any]]) -> Iterator[list[str]]:
    for name in names:
        for times, asked in zip(TIMES, SPEEDS_ASKED, strict=True):
            row = found.get((name, asked))
            if row is None:
                continue
            spent, effort = f"{row['processor_s']:.0f}", row.get("effort", "best")
            if "refused" in row:
                yield [name, f"{times}x", effort, f"refused: {' '.join(row['refused'].split())}", *[""] * 4, spent]
                continue
            latency, (before, after) = row["latency"], row["macs"]
            measured = f"{latency['speedup']:.2f}x ({latency['speedup_low']:.2f}-{latency['speedup_high']:.2f})"
            fewer, same = f"{before / max(after, 1):.2f}x fewer", f"{100 * row['agreement']:.1f} %"
            yield [name, f"{times}x", effort, measured, fewer, same, NETS[name].counted, f"{row['r2']:.3f}", spent]


def _markdown(heads: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _keys(names: Any, of: Sequence[str]) -> list[Key]:
    return [(name, asked) for name in names for asked in (*LEVELS_ASKED, *SPEEDS_ASKED) if asked.of in of]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--of", nargs="*", default=["channels", "latency"], choices=["channels", "latency"])
    parser.add_argument("--times", nargs="*", type=float, default=TIMES, help="faster")
    parser.add_argument("--effort", default="best", choices=list(EFFORTS))
    parser.add_argument("--again", action="store_true", help="also rows that are there already")
    parser.add_argument("--time-again", action="store_true", help="only time again what is there, on a quiet machine")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "trained_nets.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    some = [*LEVELS_ASKED, *map(_faster, given.times)]
    for key in [] if given.table else [(name, asked) for name in given.nets for asked in some if asked.of in given.of]:
        known = read_rows(given.out).get(key)
        if given.time_again != (known is not None and not given.again):
            continue
        try:
            row = row_of(*key, given.effort) if not given.time_again else known | _timed_again(*key)
        except ModuleNotFoundError as missing:
            print(f"{key[0]}: {missing}", flush=True)
            continue
        write_rows(given.out, read_rows(given.out) | {key: row})
        print(key, row.get("refused") or {name: row[name] for name in ("agreement", "r2", "processor_s")}, flush=True)
    write_rows(given.out, read_rows(given.out))


if __name__ == "__main__":
    main()
