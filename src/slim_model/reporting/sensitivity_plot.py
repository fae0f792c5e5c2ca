"""A sensitivity scan as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from slim_model.budget.sensitivity import Scan
from slim_model.pipeline.compiled import Compiled
from slim_model.recipe import Recipe

_NOTHING = 1e-5


def draw_scans(compiled: Compiled, recipe: Recipe) -> None:
    """A picture beside the file of each sensitivity scan, where there is such a file and matplotlib is installed."""
    place = recipe.budget.scan
    if place is None or not find_spec("matplotlib"):
        return
    for removed in compiled.passes:
        if removed.scan:
            plot(removed.scan, place.with_suffix(".svg"))


def plot(scan: Scan, place: Path) -> None:
    """One line a group, as Li et al. draw it; the format follows from the name. matplotlib must be installed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["turbo"](np.linspace(0, 1, len(scan.curves))))
    for (shares, lost), name in zip(scan.curves, scan.names, strict=True):
        axes.plot(shares * 100, lost, marker=".", label=name)
    if scan.measure == "error":
        axes.set_yscale("log")  # layers differ by orders of magnitude; what loses less is as good as nothing
        axes.set_ylim(bottom=_NOTHING)
    axes.set_xlabel("channels of one layer removed, %")
    axes.set_ylabel("relative error of the outputs" if scan.measure == "error" else "accuracy lost")
    figure.legend(fontsize=6, ncols=1 + len(scan.names) // 32, loc="outside right upper")
    figure.savefig(place)
