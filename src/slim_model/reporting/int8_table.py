"""What became of int8, as text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from slim_model.quantizing.quantize import Quantized, Trial

_MOST_NAMED = 6


def show_int8(result: Quantized, console: Console) -> None:
    """The forms that were tried, which was chosen, and what stays fp32."""
    console.print(Group(*int8_lines(result)))


def int8_lines(result: Quantized) -> Iterator[Table | Text]:
    """``show_int8`` in parts."""
    yield _table(result)
    yield Text(_with_accuracy(result), style="bold")
    if result.fp32_layers:
        names = [f"{layer.name} ({layer.gain_db:+.1f} dB)" for layer in result.fp32_layers]
        yield Text(f"  {_listed('layer', names)}: int8 costs most there")
    if result.tail:
        yield Text(f"  {_listed('node', list(result.tail))}: behind the last layer")
    if result.others:
        counted = [f"{count} {op}" for op, count in result.others.items()]
        yield Text(f"  in fp32 without int8 kernels: {', '.join(counted)}")


def _table(result: Quantized) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    # numbers stay whole on a narrow screen; what gives way is the name of the form, and words behind a number
    table.add_column("int8 form", min_width=12)
    table.add_column("fp32\nlayers", justify="right")
    for title in ("agrees", "signal", "file", "latency"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("faster", min_width=13)
    if result.latency:
        ms = f"{result.latency.dense.median_ms:.2f} ms"
        table.add_row("fp32", "all", "", "", _megabytes(result.fp32_bytes), ms, "")
    for trial in result.trials:
        name = ", ".join(filter(None, [trial.form, trial.calibration, *trial.repairs]))
        ms = f"{trial.median_ms:.2f} ms" if trial.median_ms is not None else ""
        agrees = f"{trial.agreement:.1%}" + ("" if trial.within else "\n(too few)")
        quality = (agrees, f"{min(trial.snr_db):.1f} dB")
        table.add_row(name, f"{trial.fp32_layers}", *quality, _megabytes(trial.bytes), ms, _speed(trial))
    return table


def _speed(trial: Trial) -> str:
    """Than the fp32 file, with its 95 % interval."""
    if trial.speedup is None:
        return ""
    return f"{trial.speedup:.2f}x ({trial.speedup_low:.2f}-{trial.speedup_high:.2f})"


def _with_accuracy(result: Quantized) -> str:
    """``int8 was written: u8s8, minmax; accuracy 93.4% -> 93.2%``."""
    if result.fp32_accuracy is None or result.int8_accuracy is None:
        return result.why
    return f"{result.why}; accuracy {result.fp32_accuracy:.2%} -> {result.int8_accuracy:.2%}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    stay = f"{what} stays" if len(names) == 1 else f"{what}s stay"
    return f"{len(names)} {stay} fp32: {', '.join(names[:_MOST_NAMED])}{more}"
