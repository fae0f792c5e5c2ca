"""Gates: the least accuracy and speed with which a small model is handed out."""

from __future__ import annotations

from slim_model.errors import GateError
from slim_model.recipe import Gates
from slim_model.reporting.report import Report


def check_gates(report: Report, gates: Gates) -> None:
    """Raise GateError where the small model lost more accuracy or gained less speed than ``gates`` allow."""
    if unmet := unmet_gates(report, gates):
        raise GateError(f"the small model is proven, but {' and '.join(unmet)}. It is not handed out.")


def unmet_gates(report: Report, gates: Gates) -> list[str]:
    """What of ``gates`` the small model does not meet, a sentence each."""
    max_drop, min_speedup = gates.max_drop, gates.min_speedup
    unmet = []
    known = [step["accuracy"] for step in report.steps if step["accuracy"] is not None]
    if max_drop is not None and known[0] - known[-1] > max_drop:
        unmet.append(f"accuracy fell from {known[0]:.2%} to {known[-1]:.2%}, by more than {max_drop:.2%}")
    if min_speedup is not None:
        fp32 = next(row for row in report.latency if row["runtime"].startswith("onnxruntime"))
        against = report.int8.against_dense if report.int8 else None  # of int8, where that is what was written
        speedup, low = (against.speedup, against.speedup_low) if against else (fp32["speedup"], fp32["speedup_low"])
        if low < min_speedup:
            speed = f"{speedup:.2f}x as fast (95 %: {low:.2f} at least)"
            unmet.append(f"it is {speed}, not {min_speedup:g}x")
    if limited := int8_above_limit(report):
        unmet.append(limited)
    return unmet


def _fp32_is_within(report: Report, of: str, limit: float) -> bool:
    """What was kept instead meets the limit, too: its time as if the dense model took as long as when that was set."""
    if of == "bytes":
        return bool(report.slim["bytes"] <= limit)
    timed = [row for row in report.latency if row["runtime"].startswith("onnxruntime")]
    shares = [row["slim"]["median_ms"] / row["dense"]["median_ms"] for row in timed]
    return bool(shares) and bool(shares[0] * report.budget["dense"] <= limit)


def int8_above_limit(report: Report) -> str:
    """What keeps the file from the limit that was set for it as int8; "" where nothing does."""
    of, limit = report.budget.get("of"), report.budget.get("limit", 0.0)
    if report.int8 is None or not report.recipe["budget"]["target"] or of not in ("bytes", "latency"):
        return ""
    if not report.int8.written:
        if _fp32_is_within(report, of, limit):
            return ""
        return f"its {of} is within the limit as int8 alone, and {report.int8.why}"
    size = report.int8.int8_bytes or 0
    return f"as int8 it has {size:,} bytes, {limit:,.0f} are allowed" if of == "bytes" and size > limit else ""
