"""Everything that happened -> one table for people, one JSON for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, TypedDict

import numpy as np

from slim_model.cost.counted import CostModel
from slim_model.coupling.attention_heads import share_left
from slim_model.coupling.coupling import Group, Pinned, Slice
from slim_model.coupling.rank_groups import find_rank_groups
from slim_model.data.accuracy import Step
from slim_model.measuring.machine import environment
from slim_model.measuring.timing import Comparison
from slim_model.pipeline.compiled import Compiled, Removed
from slim_model.proof.prove import Proof
from slim_model.proof.tolerance import TOLERANCE
from slim_model.quantizing.quantize import Quantized
from slim_model.recipe import Recipe
from slim_model.recipe_files.versions import REPORT_SCHEMA
from slim_model.recipe_files.write import sections_of_recipe
from slim_model.reporting.recovery_notes import recovery_notes
from slim_model.strict_json import strict_json
from slim_model.version import __version__


class SliceRow(TypedDict):
    """Where a group's channels lie in a tensor, and the positions there that were kept."""

    parameter: str
    axis: int
    role: str
    kept: list[int]


class OperatorRow(TypedDict):
    """What all operators of one kind take in one run of the dense or the slim file, of how many nodes."""

    model: str
    name: str
    nodes: int
    ms: float


class SensitivityRow(TypedDict):
    """What is lost where shares of one group's channels are removed, by ``measure`` (see ``Scan``)."""

    name: str
    measure: str
    removed: list[float]
    lost: list[float]


class _GroupRow(TypedDict):
    """Channels that were ranked together; ``kept`` are their numbers, ``before`` and ``after`` how many there are."""

    name: str
    where: str
    before: int
    after: int
    positions_per_channel: int
    kept: list[int]
    slices: list[SliceRow]


class GroupRow(_GroupRow, total=False):
    """``heads``: whole attention heads went. ``factored``: the group is the rank of the layer of this name, written in
    this ``form``, whose multiply-adds were ``macs_whole`` and are ``macs``."""

    heads: bool
    factored: str
    form: str
    macs_whole: int
    macs: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was done, in the words of the JSON report (``as_dict``). Counts of ``params``, ``macs`` (per example) and
    ``bytes`` are for the dense and the slim model; ``free_share`` is the share of channels that could go, and
    ``channels`` counts these before and after; ``steps``, each with the accuracy after it (see ``Step``); ``norms``:
    those whose statistics run over the channels that are left, while all other statistics count the dense model's;
    ``operators``: what each kind takes, where a page was asked for; ``int8``: what became of it, where it was asked
    for. ``slim`` counts the fp32 file in any case."""

    source: dict[str, Any]
    recipe: dict[str, Any]
    dense: dict[str, int]
    slim: dict[str, int]
    free_share: float
    channels: dict[str, float]
    groups: Annotated[list[dict[str, Any]], GroupRow]
    pinned: Annotated[list[dict[str, Any]], Pinned]
    unknown_ops: list[dict[str, str]]
    proof: Annotated[dict[str, Any], Proof]
    budget: dict[str, Any] = field(default_factory=dict)
    latency: Annotated[list[dict[str, Any]], Comparison] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: Annotated[list[dict[str, Any]], Step] = field(default_factory=list)
    norms: list[dict[str, str]] = field(default_factory=list)
    operators: Annotated[list[dict[str, Any]], OperatorRow] = field(default_factory=list)
    sensitivity: Annotated[list[dict[str, Any]], SensitivityRow] = field(default_factory=list)
    int8: Quantized | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"schema": REPORT_SCHEMA} | asdict(self)

    def as_json(self) -> str:
        return strict_json(self.as_dict())


def make_report(
    compiled: Compiled,
    recipe: Recipe,
    *,
    module_is_own: bool,
    sections: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    files: tuple[int, int] | None = None,
    onnx_error: float | None = None,
    latency: Iterable[Comparison] = (),
    operators: Iterable[dict[str, Any]] = (),
    warnings: Iterable[str] = (),
    seconds: dict[str, float] | None = None,
    quantized: Quantized | None = None,
    later_steps: Iterable[Step] = (),
) -> Report:
    """``sections``: the recipe as a file has it, where there are files. ``files``: bytes of the dense and the slim ONNX
    file; where None, ``bytes`` are those of the stored tensors. ``later_steps``: those behind the compiled ones."""
    dense, small = asdict(compiled.dense_cost), asdict(compiled.slim_cost)
    # The file is what a user keeps; it is a little more than its tensors.
    if files:
        dense["bytes"], small["bytes"] = files
    latency, groups = list(latency), _groups(compiled)
    # In the order of the stages that say them.
    notes = [*compiled.warnings, *warnings, *_rounding(compiled, recipe), *recovery_notes(compiled.steps, groups)]
    notes += [f"{c.runtime}: the small model is slower ({c.speedup:.2f}x)" for c in latency if c.speedup_high < 1]
    if not module_is_own:
        notes.append("the small PyTorch model is the traced graph: the model's own forward does not fit other widths")
    proof = asdict(compiled.proof) | {"onnx_max_rel_error": onnx_error, "tolerance": TOLERANCE}
    return Report(
        source=source or {},
        recipe=sections or sections_of_recipe(as_decided(recipe, compiled.block, quantized)),
        dense=dense,
        slim=small,
        free_share=round(compiled.coupling.free_share, 4),
        channels=_counted(compiled),
        groups=groups,
        pinned=[asdict(p) for p in compiled.coupling.pinned],
        unknown_ops=[{"op": op, "where": where} for op, where in compiled.coupling.unknown],
        proof=proof,
        budget=asdict(compiled.met) if compiled.met else {},
        latency=[asdict(c) for c in latency],
        environment={"slim_model": __version__} | environment(),
        warnings=notes,
        seconds=seconds or {},
        steps=[asdict(step) for step in _timed((*compiled.steps, *later_steps), latency, quantized)],
        norms=[asdict(norm) for norm in compiled.kept_norms()],
        operators=list(operators),
        sensitivity=list(_sensitivity(compiled)),
        int8=quantized,
    )


def _timed(steps: Iterable[Step], latency: Iterable[Comparison], quantized: Quantized | None) -> Iterator[Step]:
    """Each step with the latency of its file. What is done to values alone takes as long as what removal left."""
    fp32 = next((row for row in latency if row.runtime.startswith("onnxruntime")), None)
    int8 = quantized.against_dense if quantized else None
    for step in steps:
        row = int8 if step.name == "int8" else fp32
        file = row and (row.dense if step.name == "dense" else row.slim)
        yield replace(step, latency_ms=round(file.median_ms, 4)) if file else step


def _sensitivity(compiled: Compiled) -> Iterator[dict[str, Any]]:
    """Every curve of a scan, where the allocation made one."""
    for scan in (removed.scan for removed in compiled.passes if removed.scan):
        for name, (shares, lost) in zip(scan.names, scan.curves, strict=True):
            yield {"name": name, "measure": scan.measure, "removed": shares.tolist(), "lost": lost.tolist()}


def _counted(compiled: Compiled) -> dict[str, float]:
    """Free channels of layers' outputs before and after; heads that share a channel count each. Ranks are none."""
    now, dense = compiled.coupling.graph, compiled.start
    ranks = find_rank_groups(compiled.coupling)
    rows = enumerate(zip(compiled.coupling.groups, compiled.plan.widths, strict=True))
    widths = [row for number, row in rows if number not in ranks]
    before = round(sum(width * group.span / share_left(group, now, dense) for group, (width, _) in widths))
    after = sum(width * group.span for group, (_, width) in widths)
    return {"dense": before, "slim": after, "removed_share": round(1 - after / max(before, 1), 4)}


def _rounding(compiled: Compiled, recipe: Recipe) -> list[str]:
    """A note where rounding widths to the machine's block moved the ratio."""
    budget, block = recipe.budget, compiled.block
    if budget.counts_channels and block > 1 and budget.allocation == "uniform" and recipe.factoring.widths:
        off = abs(_counted(compiled)["removed_share"] - budget.share_removed) > 0.03
        return [f"widths were rounded to multiples of {block} (or of 8, 4, 2 in narrow layers), which "
                "changed the ratio; --multiple-of 1 keeps to it, and may run slower"] * off  # fmt: skip
    return []


def as_decided(recipe: Recipe, block: int, quantized: Quantized | None = None) -> Recipe:
    """The recipe with what was left to us decided: what widths are rounded to (``block``), the level of recovery, and
    what was written as int8, so that a run by it writes the same, whatever the clock says."""
    used = recipe.decided().but(multiple_of=block)
    if quantized is None:
        return used
    if not quantized.written:
        return used.but(int8=False)
    return used.but(int8_form=quantized.form, int8_anyway=True)


def _groups(compiled: Compiled) -> list[dict[str, Any]]:
    """Positions are those of the dense model, also where there were passes before. Whole heads that went first are rows
    of their own."""
    passes, loses = compiled.passes, compiled.passes[-1].loses
    heads = [one for one in passes[:-1] if one.loses != loses]
    whole = [
        row | {"heads": True}
        for n in range(len(heads))
        for row in _rows(compiled, n, n)
        if row["after"] < row["before"]
    ]
    return whole + _rows(compiled, len(passes) - 1, len(heads))


def _rows(compiled: Compiled, last: int, first: int) -> list[dict[str, Any]]:
    """Of the passes from number ``first`` to ``last``."""
    earlier = replace(compiled, passes=compiled.passes[:last])
    # Indices are those of the pass; what is kept is told in positions of the dense model.
    positions, one = earlier.kept_positions(), compiled.passes[last]
    left = one.kept_positions()
    result = []
    ranks, products = find_rank_groups(one.coupling), _of_products(one)
    for number, (group, (width, after)) in enumerate(zip(one.coupling.groups, one.plan.widths, strict=True)):
        kept = one.plan.keep[group.channels]
        result.append({
            "name": group.name,
            "where": group.where,
            "before": round(width / share_left(group, one.dense, compiled.passes[first].dense)),
            "after": after,
            "positions_per_channel": group.span,
            "kept": _numbers(group, kept, earlier, first),
            "slices": [
                {
                    "parameter": s.parameter,
                    "axis": s.axis,
                    "role": s.role,
                    "kept": _at(positions.get((s.parameter, s.axis)), _stays(s, kept, left)),
                }
                for s in group.slices
            ],
        })  # fmt: skip
        if number in ranks:
            result[-1] |= products[ranks[number].layer]
    return result


def _stays(part: Slice, kept: np.ndarray, left: Mapping[tuple[str, int], np.ndarray]) -> np.ndarray:
    """Which positions of an axis have one of the channels ``kept`` of its group; a term goes with its input, too."""
    here = (part.channel >= 0) & kept[part.channel]
    positions = left.get((part.parameter, part.axis))
    return here if positions is None else here & np.isin(np.arange(len(here)), positions)


def _of_products(one: Removed) -> list[dict[str, Any]]:
    """What the rows of ranks say of each factored layer of a pass; multiply-adds are per example."""
    meter = CostModel(one.coupling)
    pairs = zip(meter.products(), meter.products(one.plan.keep), strict=True)
    return [
        {
            "factored": dense.layer.path,
            "form": dense.layer.form,
            "macs_whole": dense.whole.macs // meter.batch,
            "macs": sum(factor.macs for factor in small.factors) // meter.batch,
        }
        for dense, small in pairs
    ]


def _numbers(group: Group, kept: np.ndarray, earlier: Compiled, first: int) -> list[int]:
    """Channels as they were numbered ahead of pass number ``first``; ``earlier``: the passes before this one."""
    if len(earlier.passes) <= first:
        return np.flatnonzero(kept).tolist()
    since = earlier.kept_positions(first)
    groups = earlier.passes[first].coupling.groups
    channels = {(s.parameter, s.axis): s.channel for g in groups for s in g.slices}
    numbers: set[int] = set()
    for s in group.slices:
        here = _at(since.get((s.parameter, s.axis)), (s.channel >= 0) & kept[s.channel])
        numbers |= set(channels[s.parameter, s.axis][here].tolist())
    return sorted(numbers)


def _at(positions: np.ndarray | None, kept: np.ndarray) -> list[int]:
    indices = np.flatnonzero(kept)
    return (indices if positions is None else positions[indices]).tolist()
