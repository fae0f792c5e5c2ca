"""report: everything that happened -> one table for people, one JSON for machines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from slim_model.measure import Comparison, environment

if TYPE_CHECKING:
    from slim_model.slim import Compiled, Recipe

SCHEMA = "slim-model-report/1"


@dataclass(frozen=True, slots=True)
class Report:
    """What was done, in the words of the JSON report (``as_dict``). Counts of ``params``, ``macs`` (per example) and
    ``bytes`` are for the dense and the slim model; ``free_share`` is the share of channels that could go."""

    source: dict[str, Any]
    recipe: dict[str, Any]
    dense: dict[str, int]
    slim: dict[str, int]
    free_share: float
    groups: list[dict[str, Any]]
    pinned: list[dict[str, Any]]
    unknown_ops: list[dict[str, str]]
    proof: dict[str, Any]
    latency: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA} | asdict(self)

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1) + "\n"


def make_report(
    compiled: Compiled,
    recipe: Recipe,
    *,
    module_is_own: bool,
    source: dict[str, Any] | None = None,
    files: tuple[int, int] | None = None,
    onnx_error: float | None = None,
    latency: Iterable[Comparison] = (),
    warnings: Iterable[str] = (),
    seconds: dict[str, float] | None = None,
) -> Report:
    """``files``: bytes of the dense and the slim ONNX file; where None, ``bytes`` are those of the stored tensors."""
    from slim_model import __version__

    dense, small = asdict(compiled.dense_cost), asdict(compiled.slim_cost)
    if files:
        dense["bytes"], small["bytes"] = files
    latency = list(latency)
    notes = [*compiled.warnings, *warnings]
    notes += [f"{c.runtime}: the small model is slower ({c.speedup:.2f}x)" for c in latency if c.speedup_high < 1]
    if not module_is_own:
        notes.append(
            "the model's forward has sizes of its own, so the small PyTorch model is the traced graph, not its class"
        )
    proof = asdict(compiled.proof) | {"onnx_max_rel_error": onnx_error, "tolerance": 1e-4}
    return Report(
        source=source or {},
        recipe=_recipe(recipe),
        dense=dense,
        slim=small,
        free_share=round(compiled.coupling.free_share, 4),
        groups=_groups(compiled),
        pinned=[asdict(p) for p in compiled.coupling.pinned],
        unknown_ops=[{"op": op, "where": where} for op, where in compiled.coupling.unknown],
        proof=proof,
        latency=[asdict(c) for c in latency],
        environment={"slim_model": __version__} | environment(),
        warnings=notes,
        seconds=seconds or {},
    )


def _recipe(recipe: Recipe) -> dict[str, Any]:
    fields = asdict(recipe)
    if callable(fields["criterion"]):
        fields["criterion"] = getattr(fields["criterion"], "__name__", "callable")
    return fields | {"block": recipe.block}


def _groups(compiled: Compiled) -> list[dict[str, Any]]:
    keep = compiled.plan.keep
    result = []
    for group, (before, after) in zip(compiled.coupling.groups, compiled.plan.widths, strict=True):
        kept = keep[group.channels]
        result.append({
            "name": group.name,
            "where": group.where,
            "before": before,
            "after": after,
            "positions_per_channel": group.span,
            "kept": np.flatnonzero(kept).tolist(),
            "slices": [
                {
                    "parameter": s.parameter,
                    "axis": s.axis,
                    "role": s.role,
                    "kept": np.flatnonzero((s.channel >= 0) & kept[s.channel]).tolist(),
                }
                for s in group.slices
            ],
        })  # fmt: skip
    return result


# -- for people -----------------------------------------------------------------------------------------------------


def show(report: Report, console: Console, *, layers: int = 12) -> None:
    """The whole report on one screen; at most ``layers`` rows of widths."""
    console.print(Group(_summary(report), _widths(report, layers), *_kept(report), *_notes(report)))


def _summary(report: Report) -> Table:
    table = Table(title=None, box=None, padding=(0, 2), header_style="bold")
    for name in ("", "dense", "slim", ""):
        table.add_column(name, justify="left" if name == "" else "right")
    for label, key, unit in (("parameters", "params", 1e6), ("MACs", "macs", 1e6), ("file", "bytes", 1e6)):
        before, after = report.dense[key], report.slim[key]
        suffix = " MB" if key == "bytes" else " M"
        table.add_row(label, f"{before / unit:,.2f}{suffix}", f"{after / unit:,.2f}{suffix}", _times(before, after))
    for row in report.latency:
        dense, slim = row["dense"], row["slim"]
        spread = f"[{row['speedup_low']:.2f}-{row['speedup_high']:.2f}]"
        table.add_row(
            f"{row['runtime']}, batch {dense['batch']}, {_plural(dense['threads'], 'thread')}",
            _milliseconds(dense),
            _milliseconds(slim),
            Text(
                f"{row['speedup']:.2f}x faster {spread}" if row["speedup"] >= 1 else f"{row['speedup']:.2f}x {spread}"
            ),
        )
    proof = report.proof
    if proof["onnx_max_rel_error"] is not None:
        table.add_row("onnxruntime = PyTorch", "", f"{proof['onnx_max_rel_error']:.1e}", "largest relative error")
    table.add_row("slim = masked dense", "", f"{proof['masked_max_rel_error']:.1e}", f"{proof['ties']:,} ties checked")
    return table


def _milliseconds(latency: dict[str, Any]) -> str:
    return f"{latency['median_ms']:.2f} ms ({latency['p10_ms']:.2f}-{latency['p90_ms']:.2f})"


def _times(before: float, after: float) -> str:
    return f"{before / after:.2f}x less" if after else ""


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _widths(report: Report, limit: int) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold", title_justify="left")
    for name in ("layer", "width", "made at"):
        table.add_column(name, justify="right" if name == "width" else "left", overflow="ellipsis", no_wrap=True)
    for group in report.groups[:limit]:
        span = group["positions_per_channel"]
        times = f" x{span}" if span > 1 else ""
        table.add_row(group["name"], f"{group['before']} -> {group['after']}{times}", Text(group["where"], style="dim"))
    if len(report.groups) > limit:
        table.add_row(f"... {len(report.groups) - limit} more (--report)", "", "")
    return table


def _kept(report: Report) -> list[Text]:
    """What was left alone and why, one line per reason."""
    counted: Counter[tuple[str, str, str]] = Counter()
    names: dict[tuple[str, str, str], list[str]] = {}
    for pin in report.pinned:
        key = (pin["why"], pin["op"], pin["where"])
        counted[key] += pin["channels"]
        names.setdefault(key, []).append(pin["name"])
    lines = [Text(f"{report.free_share:.0%} of the channels were free to go; kept:", style="bold")] if counted else []
    for (why, op, where), channels in counted.most_common(8):
        owners = names[why, op, where]
        which = owners[0] + (f" and {len(owners) - 1} more" if len(owners) > 1 else "")
        at = f" ({op}{' at ' + where if where else ''})" if op and op != "output" else ""
        lines.append(Text(f"  {which}: {_plural(channels, 'channel')}, {why}{at}"))
    if len(counted) > 8:
        lines.append(Text(f"  ... {len(counted) - 8} more reasons (--report)"))
    return lines


def _notes(report: Report) -> list[Text]:
    return [Text(f"note: {note}", style="yellow") for note in report.warnings]
