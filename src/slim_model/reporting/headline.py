"""The figures of a report that a reader looks for first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_COUNTED = (
    ("params", "parameters", "M", 1e6),
    ("macs", "multiply-adds", "M", 1e6),
    ("bytes", "file", "MB", 1e6),
)


class Figure(NamedTuple):
    """One figure of the dense and the slim model as text, how they differ, and the slim one as a number to sort by."""

    name: str
    dense: str
    slim: str
    change: str
    value: float


def figures_of(report: Mapping[str, Any]) -> Iterator[Figure]:
    """Of a report as JSON has it: channels, parameters, multiply-adds, file, latency, accuracy, as far as known."""
    channels = report["channels"]
    removed = f"{channels['removed_share']:.0%} removed"
    yield Figure("channels", f"{channels['dense']:,}", f"{channels['slim']:,}", removed, channels["slim"])
    for name, title, unit, scale in _COUNTED:
        dense, slim = report["dense"][name], report["slim"][name]
        less = f"{dense / slim:.2f}x less" if slim else ""
        yield Figure(title, f"{dense / scale:,.2f} {unit}", f"{slim / scale:,.2f} {unit}", less, slim)
    for row in report["latency"]:
        dense, slim = (f"{row[side]['median_ms']:.2f} ms" for side in ("dense", "slim"))
        faster = f"{row['speedup']:.2f}x, 95 %: {row['speedup_low']:.2f}-{row['speedup_high']:.2f}"
        yield Figure(f"latency, {row['runtime']}", dense, slim, faster, row["slim"]["median_ms"])
    known = [step["accuracy"] for step in report["steps"] if step["accuracy"] is not None]
    if known:
        change = f"{100 * (known[-1] - known[0]):+.2f} points"
        yield Figure("accuracy", f"{known[0]:.2%}", f"{known[-1]:.2%}", change, known[-1])


def figures_for_machines(report: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures as numbers, by the names that conditions have; None where one is not known."""
    of_slim = {name: report["slim"][name] for name in ("macs", "params", "bytes")}
    return of_slim | {
        "latency_ms": latency_of(report),
        "speedup": speedup_of(report),
        "accuracy": tested_accuracy(report),
        "agreement": agreement_of(report),
    }


def tested_accuracy(report: Mapping[str, Any]) -> float | None:
    """The share of test samples that the small model has right; None where it was not read."""
    return next((step["accuracy"] for step in reversed(report["steps"]) if step["accuracy"] is not None), None)


def agreement_of(report: Mapping[str, Any]) -> float | None:
    """The share of held-out samples of which the small model says what the dense one does; None where unknown."""
    known = (step["did"].get("agreement_after") for step in reversed(report["steps"]))
    return next((share for share in known if share is not None), None)


def speedup_of(report: Mapping[str, Any]) -> float | None:
    """In onnxruntime, the lower end of its interval; None where it was not measured."""
    return next((row["speedup_low"] for row in report["latency"] if row["runtime"].startswith("onnxruntime")), None)


def latency_of(report: Mapping[str, Any]) -> float | None:
    """Median ms of the small model in onnxruntime; None where it was not measured."""
    rows = (row["slim"]["median_ms"] for row in report["latency"] if row["runtime"].startswith("onnxruntime"))
    return next(rows, None)
