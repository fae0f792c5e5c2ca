"""The report as one screen of text."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from slim_model.cost.prices import PRICES
from slim_model.measuring.timing import verdict
from slim_model.reporting.int8_table import int8_lines
from slim_model.reporting.report import Report


def show(report: Report, console: Console, *, layers: int = 12) -> None:
    """The whole report on one screen; at most ``layers`` rows of widths."""
    int8 = [*int8_lines(report.int8), Text()] if report.int8 else []
    console.print(
        Group(_summary(report), Text(), *int8, _widths(report, layers), Text(), *_kept(report), *_notes(report))
    )


def _summary(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("dense", justify="right", no_wrap=True)
    table.add_column("slim", justify="right", no_wrap=True)
    table.add_column("")  # the only one that may be folded: rich cuts no_wrap columns alike
    table.add_row("channels", *_channels(report))
    if report.recipe["data"]["data"] is not None:
        table.add_row(*(Text(cell, style="dim") for cell in ("  effort", "", "", _effort(report.recipe))))
    for label, key, unit in (("parameters", "params", "M"), ("multiply-adds", "macs", "M"), ("file", "bytes", "MB")):
        before, after = report.dense[key], report.slim[key]
        table.add_row(label, f"{before / 1e6:,.2f} {unit}", f"{after / 1e6:,.2f} {unit}", _times(before, after))
    if report.budget:
        _add_budget(table, report.budget)
    for row in report.latency:
        _add_latency(table, row)
    if report.int8 and report.int8.written:
        _add_int8(table, report)
    proof = report.proof
    checked = f"{proof['ties']:,} ties hold"
    if (read := report.source.get("read_max_rel_error")) is not None:
        table.add_row("proof: what was read", "", f"error {read:.0e}", "against onnxruntime on IN")
    if proof["factored_max_rel_error"] is not None:
        table.add_row("proof: factored dense", "", f"error {proof['factored_max_rel_error']:.0e}", "against dense")
    table.add_row("proof: masked dense", "", f"error {proof['masked_max_rel_error']:.0e}", checked)
    if proof["onnx_max_rel_error"] is not None:
        table.add_row("proof: onnxruntime", "", f"error {proof['onnx_max_rel_error']:.0e}", "against PyTorch")
    _add_steps(table, report.steps)
    return table


def _effort(recipe: dict[str, Any]) -> str:
    """``balanced: reconstruction, full, 1,024 samples``"""
    chosen = [recipe["ranking"]["criterion"], recipe["recovery"]["recover"], f"{recipe['data']['samples']:,} samples"]
    return f"{recipe['effort']['effort']}: {', '.join(chosen)}"


def _add_steps(table: Table, steps: list[dict[str, Any]]) -> None:
    """``accuracy: dense 93.4 %``, then one row for each step, with what it gave or took; below it what the step did to
    the error on held-out samples, and to the share of them with the dense model's class."""
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
        if text := _error(step["did"]):
            table.add_row(Text("  held out", style="dim"), "", "", Text(text, style="dim"))


def _error(did: dict[str, Any]) -> str:
    """``error 0.52 -> 0.11, agreement 71% -> 93%``."""
    parts = []
    if did.get("error_after") is not None and did.get("error_before") is not None:
        parts.append(f"error {did['error_before']:.3g} -> {did['error_after']:.3g}")
    if did.get("agreement_after") is not None and did.get("agreement_before") is not None:
        parts.append(f"agreement {did['agreement_before']:.0%} -> {did['agreement_after']:.0%}")
    return ", ".join(parts) + (" (taken back)" if did.get("taken_back") and parts else "")


def _channels(report: Report) -> tuple[str, str, str]:
    removed = report.channels["removed_share"]
    asked = report.recipe["budget"]["ratio"]
    off = f" (asked: {asked:.0%})" if not report.budget and abs(removed - asked) > 0.015 else ""
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
    words = verdict(low, high)
    said = words if low <= 1 <= high else f"{row['speedup']:.2f}x {words}"
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


def _add_int8(table: Table, report: Report) -> None:
    """Its size and latency, against the dense model's."""
    int8 = report.int8
    assert int8 is not None
    assert int8.int8_bytes is not None
    dense, small = report.dense["bytes"], int8.int8_bytes
    table.add_row("int8: file", f"{dense / 1e6:,.2f} MB", f"{small / 1e6:,.2f} MB", _times(dense, small))
    if int8.against_dense:
        row = asdict(int8.against_dense)
        _add_latency(table, row | {"runtime": f"int8: {row['runtime']}"})


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
        where = Text(_short(group["where"]), style="dim", no_wrap=True, overflow="ellipsis")
        if "factored" in group:
            saved = f"{group['form']}, {group['macs_whole'] / group['macs']:.2f}x fewer multiply-adds; "
            where = Text(saved, no_wrap=True, overflow="ellipsis").append_text(where)
        table.add_row(
            _both_ends(group["name"]) + (" (heads)" if group.get("heads") else ""),
            f"{group['before']} -> {group['after']}{times}",
            where,
        )
    if len(report.groups) > limit:
        table.add_row(f"... {len(report.groups) - limit} more (--report)", "", "")
    return table


def _both_ends(name: str, most: int = 48) -> str:
    """Of a long name, as converters give them, the beginning and the end: the line beside it stays readable."""
    return name if len(name) <= most else f"{name[: most - 12]}...{name[-9:]}"


def _short(where: str) -> str:
    """``resnet.py:92: out = self.conv1(x)``; of a node of a file its name."""
    line, _, code = where.partition(" in ")
    if ".onnx:" in line:
        return code
    return f"{line}: {code.partition(': ')[2]}" if code else where


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
