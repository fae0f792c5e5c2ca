"""The rows of the zoo as one page: counts, what is not proven, what is pinned and why, and every model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ENOUGH = 0.6
"""A free share under this wants its reason said."""


def write_tables(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(_page(rows)) + "\n")


def _page(rows: list[Row]) -> Iterable[str]:
    yield from ("# The zoo", "", "Written by `python scripts/zoo`: random weights, ratio 0.5, criterion l1.", "")
    yield from _table(
        "family | models | traced | proven | wrong | ONNX verified | median free share | under 60 % free",
        [
            _counts(family, [r for r in rows if r["family"] == family])
            for family in dict.fromkeys(r["family"] for r in rows)
        ],
    )
    yield from ("", "## Not proven", "", *_table("cause | models", _causes(rows, "fault")))
    onnx = _causes(rows, "onnx_fault")
    yield from ("", "## Proven as a module, not written as ONNX", "", *_table("cause | models", onnx))
    low = [
        f"{r['model']} | {r['free_share_proven']:.0%} | {_main_reason(r)}"
        for r in rows
        if r.get("free_share_proven", 1) < ENOUGH
    ]
    yield from (
        "",
        f"## Less than {ENOUGH:.0%} of the channels free",
        "",
        *_table("model | free | most are kept by", low),
    )
    yield from ("", "## What keeps channels", "", *_table("operator | why | channels | models", _reasons(rows)))
    models = [_model(r) for r in rows if "fault" not in r]
    yield from ("", "## All models", "", *_table(_ALL, models))


_ALL = (
    "family | model | params, M | traced by | free | masked error | layer error | ONNX error | own class | "
    "trace, s | analysis, s | all, s"
)


def _table(head: str, lines: list[str]) -> list[str]:
    columns = head.count("|") + 1
    return [f"| {head} |", "|" + "---|" * columns, *(f"| {line} |" for line in lines)] if lines else ["None."]


def _counts(family: str, rows: list[Row]) -> str:
    proven = [r for r in rows if "fault" not in r]
    shares = sorted(r["free_share_proven"] for r in proven) or [0.0]
    cells = (
        family,
        len(rows),
        sum("traced" in r for r in rows),
        len(proven),
        sum(r["layer_max_rel_error"] > 1e-4 or r["masked_max_rel_error"] > 1e-4 for r in proven),
        sum("onnx_max_rel_error" in r for r in proven),
        f"{shares[len(shares) // 2]:.0%}",
        sum(share < ENOUGH for share in shares) if proven else 0,
    )
    return " | ".join(map(str, cells))


def _causes(rows: list[Row], key: str) -> list[str]:
    """Faults that read the same but for their numbers are one cause; the most frequent come first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if key in row:
            found[re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", row[key])].append(row)
    ordered = sorted(found.values(), key=lambda alike: -len(alike))
    return [f"{_cell(alike[0][key])} | {len(alike)}: {', '.join(row['model'] for row in alike)}" for alike in ordered]


def _reasons(rows: list[Row]) -> list[str]:
    channels: Counter[tuple[str, str]] = Counter()
    models = defaultdict(set)
    for row in rows:
        for pin in row.get("pinned", ()):
            key = (pin["op"], pin["why"])
            channels[key] += pin["channels"]
            models[key].add(row["model"])
    return [
        f"`{op}` | {_cell(why)} | {count:,} | {len(models[op, why])}: {', '.join(sorted(models[op, why])[:4])}"
        for (op, why), count in channels.most_common(60)
    ]


def _main_reason(row: Row) -> str:
    if not row["pinned"]:
        return "; ".join(_cell(reason) for reason in row["not_cut"][:2])
    pin = row["pinned"][0]
    return f"`{pin['op']}` ({_cell(pin['where'])}): {_cell(pin['why'])}"


def _model(row: Row) -> str:
    seconds = row["seconds"]
    onnx = f"{row['onnx_max_rel_error']:.1e}" if "onnx_max_rel_error" in row else "none"
    cells = (
        *(row["family"], row["model"], f"{row['params'] / 1e6:.2f}", row["traced"], f"{row['free_share_proven']:.1%}"),
        *(f"{row['masked_max_rel_error']:.1e}", f"{row['layer_max_rel_error']:.1e}", onnx),
        *("yes" if row["own_class"] else "no", f"{seconds['trace']:.1f}", f"{seconds['couple']:.2f}"),
        f"{sum(seconds.values()):.1f}",
    )
    return " | ".join(cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
