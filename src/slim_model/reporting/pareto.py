"""What several runs gave for what they cost: points, and the front that no other run beats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from slim_model.reporting.headline import agreement_of, bytes_of, latency_of, tested_accuracy

Reports = Mapping[str, Mapping[str, Any]]


class Picture(NamedTuple):
    """``points``: name, cost, quality, and whether it is on the front; ``ticks`` are the least and the most of both."""

    cost: str
    quality: str
    points: list[tuple[str, float, float, bool]]
    costs: tuple[float, float]
    qualities: tuple[float, float]


_COSTS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "latency in onnxruntime, ms": latency_of,
    "file, MB": lambda report: bytes_of(report) / 1e6,
    "multiply-adds, M": lambda report: report["slim"]["macs"] / 1e6,
}
_QUALITIES = {"accuracy": tested_accuracy, "agreement with the dense model": agreement_of}


def trade_offs(reports: Reports) -> Iterator[Picture]:
    """A picture for each cost and for the first quality that is known of two runs or more."""
    for quality, read in _QUALITIES.items():
        known = {name: share for name, report in reports.items() if (share := read(report)) is not None}
        if len(known) > 1:
            for cost, of in _COSTS.items():
                points = [(name, float(x), known[name]) for name in known if (x := of(reports[name])) is not None]
                if len(points) > 1:
                    yield _picture(cost, quality, points)
            return


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each ``(cost, quality)``, whether no other point is as good in both and better in one.

    >>> front([(1, 0.8), (2, 0.9), (3, 0.7)])
    [True, True, False]
    """
    return [
        not any((a, -b) != (x, -y) and a <= x and b >= y for a, b in points)  # the point itself beats nothing
        for x, y in points
    ]


def _picture(cost: str, quality: str, points: list[tuple[str, float, float]]) -> Picture:
    on = front([(x, y) for _, x, y in points])
    xs, ys = [x for _, x, _ in points], [y for *_, y in points]
    rows = [(name, x, y, best) for (name, x, y), best in zip(points, on, strict=True)]
    return Picture(cost, quality, sorted(rows, key=lambda row: row[1]), (min(xs), max(xs)), (min(ys), max(ys)))
