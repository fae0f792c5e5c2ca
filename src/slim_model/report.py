"""report: everything that happened -> one table for people, one JSON for machines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from slim_model.couple import Group as Channels
from slim_model.errors import GateError
from slim_model.heads import left
from slim_model.measure import Comparison, environment, verdict
from slim_model.prices import PRICES

if TYPE_CHECKING:
    from slim_model.recipe import Recipe
    from slim_model.slim import Compiled

SCHEMA = "slim-model-report/1"


@dataclass(frozen=True, slots=True)
class Report:
    """What was done, in the words of the JSON report (``as_dict``). Counts of ``params``, ``macs`` (per example) and
    ``bytes`` are for the dense and the slim model; ``free_share`` is the share of channels that could go, and
    ``channels`` counts these before and after; ``steps``, each with the accuracy after it (see ``Step``)."""

    source: dict[str, Any]
    recipe: dict[str, Any]
    dense: dict[str, int]
    slim: dict[str, int]
    free_share: float
    channels: dict[str, float]
    groups: list[dict[str, Any]]
    pinned: list[dict[str, Any]]
    unknown_ops: list[dict[str, str]]
    proof: dict[str, Any]
    budget: dict[str, Any] = field(default_factory=dict)
    latency: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

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
    off = abs(_counted(compiled)["removed_share"] - recipe.ratio) > 0.03
    if off and recipe.goal is None and recipe.block > 1 and recipe.scope == "local":
        notes.append(f"widths were rounded to multiples of {recipe.block} (or of 8, 4, 2 in narrow layers), which "
                     "changed the ratio; --multiple-of 1 keeps to it, and may run slower")  # fmt: skip
    notes += [f"{c.runtime}: the small model is slower ({c.speedup:.2f}x)" for c in latency if c.speedup_high < 1]
    if not module_is_own:
        notes.append("the small PyTorch model is the traced graph: the model's own forward does not fit other widths")
    proof = asdict(compiled.proof) | {"onnx_max_rel_error": onnx_error, "tolerance": 1e-4}
    return Report(
        source=source or {},
        recipe=_recipe(recipe),
        dense=dense,
        slim=small,
        free_share=round(compiled.coupling.free_share, 4),
        channels=_counted(compiled),
        groups=_groups(compiled),
        pinned=[asdict(p) for p in compiled.coupling.pinned],
        unknown_ops=[{"op": op, "where": where} for op, where in compiled.coupling.unknown],
        proof=proof,
        budget=asdict(compiled.met) if compiled.met else {},
        latency=[asdict(c) for c in latency],
        environment={"slim_model": __version__} | environment(),
        warnings=notes,
        seconds=seconds or {},
        steps=[asdict(step) for step in compiled.steps],
    )


def _counted(compiled: Compiled) -> dict[str, float]:
    """Free channels of layers' outputs before and after; heads that share a channel count each."""
    now, dense = compiled.coupling.graph, compiled.dense
    rows = list(zip(compiled.coupling.groups, compiled.plan.widths, strict=True))
    before = round(sum(width * group.span / left(group, now, dense) for group, (width, _) in rows))
    after = sum(width * group.span for group, (_, width) in rows)
    return {"dense": before, "slim": after, "removed_share": round(1 - after / before, 4)}


def _recipe(recipe: Recipe) -> dict[str, Any]:
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    for name in ("criterion", "loss", "augment"):
        if callable(values[name]):
            values[name] = getattr(values[name], "__name__", "callable")
    if values["data"] is not None and not isinstance(values["data"], str):
        values["data"] = f"given in Python ({type(values['data']).__name__})"
    return values | {"block": recipe.block, "scan": str(recipe.scan) if recipe.scan else None}


def _groups(compiled: Compiled) -> list[dict[str, Any]]:
    """Positions are those of the dense model, also where there were passes before. Whole heads that went first are rows
    of their own."""
    passes = [compiled]
    while passes[0].before:
        passes.insert(0, passes[0].before)
    heads = [one for one in passes[:-1] if one.kind != compiled.kind]
    whole = [row | {"heads": True} for one in heads for row in _rows(one, one) if row["after"] < row["before"]]
    return whole + _rows(compiled, passes[len(heads)])


def _rows(last: Compiled, first: Compiled) -> list[dict[str, Any]]:
    """Of the passes from ``first`` to ``last``."""
    positions = last.before.kept_positions() if last.before else {}
    result = []
    for group, (width, after) in zip(last.coupling.groups, last.plan.widths, strict=True):
        kept = last.plan.keep[group.channels]
        result.append({
            "name": group.name,
            "where": group.where,
            "before": round(width / left(group, last.coupling.graph, first.coupling.graph)),
            "after": after,
            "positions_per_channel": group.span,
            "kept": _numbers(group, kept, last, first),
            "slices": [
                {
                    "parameter": s.parameter,
                    "axis": s.axis,
                    "role": s.role,
                    "kept": _at(positions.get((s.parameter, s.axis)), (s.channel >= 0) & kept[s.channel]),
                }
                for s in group.slices
            ],
        })  # fmt: skip
    return result


def _numbers(group: Channels, kept: np.ndarray, last: Compiled, first: Compiled) -> list[int]:
    """Channels as they were numbered ahead of ``first``."""
    if last is first or last.before is None:
        return np.flatnonzero(kept).tolist()
    since = last.before.kept_positions(first)
    channels = {(s.parameter, s.axis): s.channel for g in first.coupling.groups for s in g.slices}
    found: set[int] = set()
    for s in group.slices:
        here = _at(since.get((s.parameter, s.axis)), (s.channel >= 0) & kept[s.channel])
        found |= set(channels[s.parameter, s.axis][here].tolist())
    return sorted(found)


def _at(positions: np.ndarray | None, kept: np.ndarray) -> list[int]:
    found = np.flatnonzero(kept)
    return (found if positions is None else positions[found]).tolist()


# -- gates ----------------------------------------------------------------------------------------------------------


def check_gates(report: Report, max_drop: float | None = None, min_speedup: float | None = None) -> None:
    """Raises GateError where the small model lost more accuracy than ``max_drop`` (a share: 0.01 is one point), or
    where the lower end of the 95 % interval of its speed-up in onnxruntime is below ``min_speedup``."""
    unmet = []
    known = [step["accuracy"] for step in report.steps if step["accuracy"] is not None]
    if max_drop is not None and known[0] - known[-1] > max_drop:
        unmet.append(f"accuracy fell from {known[0]:.2%} to {known[-1]:.2%}, by more than {max_drop:.2%}")
    if min_speedup is not None:
        row = next(row for row in report.latency if row["runtime"].startswith("onnxruntime"))
        if row["speedup_low"] < min_speedup:
            found = f"{row['speedup']:.2f}x as fast (95 %: {row['speedup_low']:.2f} at least)"
            unmet.append(f"it is {found}, not {min_speedup:g}x")
    if unmet:
        raise GateError(f"the small model is proven, but {' and '.join(unmet)}. It is not handed out.")


# -- for people -----------------------------------------------------------------------------------------------------


def show(report: Report, console: Console, *, layers: int = 12) -> None:
    """The whole report on one screen; at most ``layers`` rows of widths."""
    console.print(Group(_summary(report), Text(), _widths(report, layers), Text(), *_kept(report), *_notes(report)))


def _summary(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("dense", justify="right", no_wrap=True)
    table.add_column("slim", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_row("channels", *_channels(report))
    for label, key, unit in (("parameters", "params", "M"), ("multiply-adds", "macs", "M"), ("file", "bytes", "MB")):
        before, after = report.dense[key], report.slim[key]
        table.add_row(label, f"{before / 1e6:,.2f} {unit}", f"{after / 1e6:,.2f} {unit}", _times(before, after))
    if report.budget:
        _add_budget(table, report.budget)
    for row in report.latency:
        _add_latency(table, row)
    proof = report.proof
    checked = f"{proof['ties']:,} ties hold"
    table.add_row("proof: masked dense", "", f"error {proof['masked_max_rel_error']:.0e}", checked)
    if proof["onnx_max_rel_error"] is not None:
        table.add_row("proof: onnxruntime", "", f"error {proof['onnx_max_rel_error']:.0e}", "against PyTorch")
    _add_steps(table, report.steps)
    return table


def _add_steps(table: Table, steps: list[dict[str, Any]]) -> None:
    """``accuracy: dense 93.4 %``, then one row for each step, with what it gave or took."""
    before: float | None = None
    for step in steps:
        now = step["accuracy"]
        if now is None:
            if step["did"]:
                table.add_row(step["name"], "", "", f"{step['seconds']:.1f} s")
        elif before is None:
            table.add_row(f"accuracy: {step['name']}", f"{now:.2%}", "", "")
        else:
            took = f", {step['seconds']:.1f} s" if step["seconds"] else ""
            table.add_row(f"accuracy: {step['name']}", "", f"{now:.2%}", f"{100 * (now - before):+.2f} points{took}")
        before = now


def _channels(report: Report) -> tuple[str, str, str]:
    removed = report.channels["removed_share"]
    asked = report.recipe["ratio"]
    off = f" (asked: {asked:.0%})" if abs(removed - asked) > 0.015 and not report.budget else ""
    return f"{report.channels['dense']:,}", f"{report.channels['slim']:,}", f"{removed:.0%} removed{off}"


def _add_budget(table: Table, budget: dict[str, Any]) -> None:
    price = PRICES[budget["of"]]
    share = f"{budget['reached'] / budget['limit']:.1%} of {price.say(budget['limit'])} allowed"
    table.add_row(price.label, price.say(budget["dense"]), price.say(budget["reached"]), share)
    trials = budget["trials"]
    predicted = price.say(trials[-1][0]) if trials else ""
    tried = f", {_plural(len(trials), 'plan')} tried" if trials else ""
    dim = [
        Text(cell, style="dim")
        for cell in ("  predicted" if trials else "  allocation", "", predicted, budget["allocate"] + tried)
    ]
    table.add_row(*dim)


def _add_latency(table: Table, row: dict[str, Any]) -> None:
    dense, slim = row["dense"], row["slim"]
    low, high = row["speedup_low"], row["speedup_high"]
    found = verdict(low, high)
    said = found if low <= 1 <= high else f"{row['speedup']:.2f}x {found}"
    table.add_row(
        row["runtime"],
        f"{dense['median_ms']:.2f} ms",
        f"{slim['median_ms']:.2f} ms",
        f"{said}, 95 %: {low:.2f}-{high:.2f}",
    )
    table.add_row(
        Text("  p10-p90", style="dim"),
        Text(f"{dense['p10_ms']:.2f}-{dense['p90_ms']:.2f}", style="dim"),
        Text(f"{slim['p10_ms']:.2f}-{slim['p90_ms']:.2f}", style="dim"),
        Text(f"batch {dense['batch']}, {_plural(dense['threads'], 'thread')}", style="dim"),
    )


def _times(before: float, after: float) -> str:
    return f"{before / after:.2f}x less" if after else ""


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _widths(report: Report, limit: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("width", justify="right", no_wrap=True, min_width=14)
    table.add_column("made at")  # the only one that may be cut: rich shrinks no_wrap columns alike
    for group in report.groups[:limit]:
        span = group["positions_per_channel"]
        times = f" x{span}" if span > 1 else ""
        table.add_row(
            group["name"] + (" (heads)" if group.get("heads") else ""),
            f"{group['before']} -> {group['after']}{times}",
            Text(_short(group["where"]), style="dim", no_wrap=True, overflow="ellipsis"),
        )
    if len(report.groups) > limit:
        table.add_row(f"... {len(report.groups) - limit} more (--report)", "", "")
    return table


def _short(where: str) -> str:
    """``resnet.py:92: out = self.conv1(x)``"""
    place, _, code = where.partition(" in ")
    return f"{place}: {code.partition(': ')[2]}" if code else where


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
