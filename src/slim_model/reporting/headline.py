"""The figures of a report that a reader looks for first. Where OUT.onnx is int8, its own stand beside those of fp32,
and machines are told those."""

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
        yield _counted(title, unit, scale, report["dense"][name], report["slim"][name])
    for row in report["latency"]:
        yield _timed(f"latency, {row['runtime']}", row)
    if int8 := _int8_of(report):
        yield _counted("int8: file", "MB", 1e6, report["dense"]["bytes"], int8["int8_bytes"])
        if row := int8["against_dense"]:
            yield _timed(f"int8: latency, {row['runtime']}", row)
    known = [step["accuracy"] for step in report["steps"] if step["accuracy"] is not None]
    if known:
        change = f"{100 * (known[-1] - known[0]):+.2f} points"
        yield Figure("accuracy", f"{known[0]:.2%}", f"{known[-1]:.2%}", change, known[-1])


def _counted(title: str, unit: str, scale: float, dense: float, slim: float) -> Figure:
    less = f"{dense / slim:.2f}x less" if slim else ""
    return Figure(title, f"{dense / scale:,.2f} {unit}", f"{slim / scale:,.2f} {unit}", less, slim)


def _timed(title: str, row: Mapping[str, Any]) -> Figure:
    dense, slim = (f"{row[side]['median_ms']:.2f} ms" for side in ("dense", "slim"))
    faster = f"{row['speedup']:.2f}x, 95 %: {row['speedup_low']:.2f}-{row['speedup_high']:.2f}"
    return Figure(title, dense, slim, faster, row["slim"]["median_ms"])


def _int8_of(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a report says of int8, where that is what OUT.onnx holds; else nothing."""
    int8 = report.get("int8") or {}
    return int8 if int8.get("written") else {}


def figures_for_machines(report: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures as numbers, by the names that conditions have; None where one is not known."""
    return {
        "macs": report["slim"]["macs"],
        "params": report["slim"]["params"],
        "bytes": bytes_of(report),
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


def bytes_of(report: Mapping[str, Any]) -> int:
    """Of OUT.onnx."""
    return int(_int8_of(report).get("int8_bytes") or report["slim"]["bytes"])


def speedup_of(report: Mapping[str, Any]) -> float | None:
    """Of OUT.onnx in onnxruntime, the lower end of its interval; None where it was not measured."""
    row = _in_onnxruntime(report)
    return row["speedup_low"] if row else None


def latency_of(report: Mapping[str, Any]) -> float | None:
    """Median ms of OUT.onnx in onnxruntime; None where it was not measured."""
    row = _in_onnxruntime(report)
    return row["slim"]["median_ms"] if row else None


def _in_onnxruntime(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """OUT.onnx against the dense file, in turns."""
    if int8 := _int8_of(report):
        return int8["against_dense"]
    return next((row for row in report["latency"] if row["runtime"].startswith("onnxruntime")), None)
