"""A latency table in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slim_model.cost.latency_table import LatencyTable
from slim_model.cost.layer_models import Placed
from slim_model.ops import LayerShape


@dataclass(frozen=True, slots=True)
class Learned:
    """``whole``: the dense model measured, and what the table says of it, in ms."""

    table: LatencyTable
    path: Path
    placed: tuple[Placed, ...]
    names: tuple[str, ...]
    whole: tuple[float, float] | None


# -- for people -----------------------------------------------------------------------------------------------------

_PARTS = (1.0, 0.75, 0.5, 0.25)


def show_learned(learned: Learned, console: Console) -> None:
    """The layers at parts of their width, the width steps, and how well the sum of the layers meets the whole."""
    table, setting = learned.table, learned.table.setting
    if learned.placed:
        console.print(Text("ms of each layer with all its widths at a part of the dense ones", style="dim"))
        console.print(_layers(learned))
        console.print()
    for (kind, axis), step in table.steps.items():
        said = f"multiples of {step}" if step > 1 else "none seen"
        dearer = {n: ratio for n, ratio in table.penalties[kind, axis].items() if ratio > 1.1}
        also = "".join(f"; a width that only {n} divides costs {ratio:.1f}x" for n, ratio in sorted(dearer.items()))
        console.print(Text(f"width step, {kind}, {_AXES[kind][axis]}: {said}{also}"))
    if learned.whole:
        measured, predicted = learned.whole
        console.print(Text(f"whole model: {measured:.2f} ms measured, {predicted:.2f} ms as the sum of its layers"))
    console.print(
        Text(
            f"{setting.runtime} {setting.version}, {setting.threads} thread{'s' * (setting.threads > 1)}, batch "
            f"{setting.batch}, {setting.dtype}, {setting.machine}: {len(table.points)} points in {learned.path}",
            style="dim",
        )
    )


_AXES = {
    "conv": ("", "inputs", "outputs"),
    "pointwise": ("", "inputs", "outputs"),
    "depthwise": ("channels",),
    "linear": ("inputs", "outputs"),
}


def _layers(learned: Learned) -> Table:
    """One row for layers that are alike."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer (and how many like it)", no_wrap=True, overflow="ellipsis")
    table.add_column("kind")
    for name in ("widths", *(f"{part:.0%}" for part in _PARTS)):
        table.add_column(name, justify="right", no_wrap=True)
    alike: dict[tuple[LayerShape, tuple[bool, ...]], list[str]] = {}
    for placed, name in zip(learned.placed, learned.names, strict=True):
        alike.setdefault((placed.layer, placed.free), []).append(name)
    for placed in learned.placed:
        names = alike.pop((placed.layer, placed.free), [])
        if not names:
            continue
        more = f" (+{len(names) - 1})" if len(names) > 1 else ""
        widths = " ".join(map(str, placed.layer.widths))
        times = [f"{learned.table.latency_ms(placed, _part(placed, part)):.3f}" for part in _PARTS]
        table.add_row(names[0] + more, placed.layer.kind, widths, *times)
    return table


def _part(placed: Placed, part: float) -> list[int]:
    """The widths that may change at this part of the dense ones."""
    pairs = zip(placed.layer.widths, placed.free, strict=True)
    return [max(1, round(width * part)) if free else width for width, free in pairs]
