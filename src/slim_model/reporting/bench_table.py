"""Benchmark rows as a table in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slim_model.measuring.runtimes import RUNTIMES, version_of


@dataclass(frozen=True, slots=True)
class Bench:
    """``rows``: one for each file, runtime, batch and number of threads; ``absent``: a runtime and why it did not
    run; ``notes``: what else could not be had."""

    rows: list[dict[str, Any]]
    absent: list[tuple[str, str]]
    notes: list[str]


# -- for people -----------------------------------------------------------------------------------------------------


def list_runtimes(console: Console) -> None:
    """Every row of RUNTIMES, and why it cannot be used here where it cannot."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("runtime", "device", "runs", ""):
        table.add_column(name, no_wrap=bool(name))
    for row in RUNTIMES.values():
        reason = row.available()
        state = Text(f"version {version_of(*row.packages)}") if reason is None else Text(reason, style="dim")
        table.add_row(row.name, row.device, ".onnx" if row.artifact == "onnx" else ".pt2, .pt", state)
    console.print(table)


def show_bench(result: Bench, console: Console) -> None:
    """A block for each runtime, batch and number of threads, then what is not a number."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in result.rows:
        threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        blocks.setdefault(f"{row['runtime']}, batch {row['batch']}, {threads}", []).append(row)
    for title, rows in blocks.items():
        console.print(Text(f"{title}: median (p10-p90), throughput, peak memory", style="bold"))
        for row in rows:
            console.print(Text("\n".join(_lines(row))))
        for row in rows:
            _show_operators(row, console)
    for source in dict.fromkeys(row["energy_source"] for row in result.rows):
        console.print(Text(f"energy: {source}", style="dim"))
    for name, reason in result.absent:
        console.print(Text(f"{name}: {reason}", style="yellow"))
    for note in dict.fromkeys(result.notes):
        console.print(Text(f"note: {note}", style="yellow"))


def _lines(row: dict[str, Any]) -> list[str]:
    """The file, what it takes, and how that is against the reference."""
    numbers = [
        f"{row['median_ms']:9.2f} ms ({row['p10_ms']:.2f}-{row['p90_ms']:.2f})",
        f"{row['examples_per_s']:,.1f} examples/s",
    ]
    if row["own_bytes"] is not None:
        numbers.append(f"{(row['device_bytes'] or row['own_bytes']) / 1e6:,.0f} MB")
    if row["joules_per_run"] is not None:
        numbers.append(f"{row['joules_per_run']:.3g} J")
    elif row["estimated_energy_macs"] is not None:
        numbers.append(f"energy as of {row['estimated_energy_macs'] / 1e6:,.0f} M MACs (estimated)")
    lines = [f"  {row['file']}", "  " + ", ".join(numbers)]
    if row["verdict"]:
        low, high = row["speedup_low"], row["speedup_high"]
        shown = row["verdict"] if low <= 1 <= high else f"{row['speedup']:.2f}x {row['verdict']}"
        lines.append(f"{'':13}{shown}, 95 %: {low:.2f}-{high:.2f}")
    return lines


def _show_operators(row: dict[str, Any], console: Console, most: int = 8) -> None:
    if not row["operators"]:
        return
    total = sum(operator["ms"] for operator in row["operators"])
    console.print(Text(f"{row['file']} in {row['runtime']}: {total:.3f} ms in operators", style="bold"))
    for operator in row["operators"][:most]:
        share = operator["ms"] / total if total else 0.0
        console.print(Text(f"  {operator['name']:<24}{operator['nodes']:>5} x {operator['ms']:>9.3f} ms {share:>5.0%}"))
