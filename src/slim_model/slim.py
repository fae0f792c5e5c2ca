"""slim: the pipeline, one stage a line. Read this first.

    load -> trace -> simplify -> couple -> score -> budget -> shrink -> prove -> recover -> finetune -> export
        -> measure -> report

Each stage is a function in the file of its name, from frozen values to a frozen value.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from slim_model.accuracy import Exam, Step
from slim_model.aim import Met
from slim_model.budget import Plan
from slim_model.cost import Cost, cost
from slim_model.couple import Coupling, couple
from slim_model.criteria import score
from slim_model.data import Data, Split, open_data
from slim_model.deciding import Deciding
from slim_model.engines import ENGINES, Task
from slim_model.errors import BudgetError, InputError, ProofError
from slim_model.evidence import said
from slim_model.finetune import finetune
from slim_model.heads import Heads, find_heads, left
from slim_model.prove import Proof, check_trace, prove, relative_error
from slim_model.rebuild import small_module
from slim_model.recipe import Recipe
from slim_model.recovery import recover
from slim_model.recovery.passages import passages_inside
from slim_model.report import Report, check_gates, make_report
from slim_model.resume import Resume
from slim_model.samples import open_samples
from slim_model.shrink import CutFailed, cut_of, left_of, resized, shrink
from slim_model.simplify import simplify
from slim_model.trace import Graph, evaluating, first_of, trace
from slim_model.training import frozen_names

_ATTEMPTS = 40  # each failed attempt pins one more operator


@dataclass(frozen=True, slots=True)
class Compiled:
    """A small graph that was proven, and all that led to it. ``kind``: what went of attention in this pass, whole heads
    or widths; ``before``: the pass before it, whose small graph the coupling and the plan are of. ``steps``: what the
    dense model reaches, what is left right after removal, and each step that then gave the small graph's tensors other
    values; none without data."""

    dense: Graph
    small: Graph
    coupling: Coupling
    plan: Plan
    proof: Proof
    dense_cost: Cost
    slim_cost: Cost
    warnings: tuple[str, ...]
    kind: Literal["heads", "width"] = "width"
    before: Compiled | None = None
    met: Met | None = None
    steps: tuple[Step, ...] = ()

    def after(self, before: Compiled) -> Compiled:
        """Both passes as one, from the dense model on."""
        warnings = tuple(dict.fromkeys((*before.warnings, *self.warnings)))
        met = replace(self.met, dense=before.met.dense) if self.met and before.met else self.met
        return replace(
            self,
            dense=before.dense,
            proof=before.proof.and_then(self.proof),
            dense_cost=before.dense_cost,
            warnings=warnings,
            before=before,
            met=met,
            steps=before.steps,
        )

    def kept_positions(self, first: Compiled | None = None) -> dict[tuple[str, int], np.ndarray]:
        """(tensor, axis) -> the positions of the dense model that are left; axes that keep all are not listed.
        ``first``: since that pass, instead."""
        found = self.before.kept_positions(first) if self.before and self is not first else {}
        here = left_of(self.coupling, self.plan.keep)
        return found | {place: found[place][rows] if place in found else rows for place, rows in here.items()}


class Slimmed(NamedTuple):
    """``module`` is the user's own class with smaller layers, or a graph module where that cannot be."""

    module: nn.Module
    plan: Plan
    report: Report


Progress = Callable[[str], None]


def slim(model: nn.Module, example_inputs: Tensor | Sequence[Any], **options: Any) -> Slimmed:
    """Remove channels from ``model`` and prove the result. ``model`` is left as it was.

    ``options`` are the fields of ``Recipe``: ``slim(model, x, ratio=0.5, criterion="l1")``. A criterion may be a
    callable ``(Slices) -> (width,) scores, higher = keep``. Raises InputError, BudgetError, GateError or ProofError.
    """
    recipe = Recipe(**options)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    compiled = compile_model(model, inputs, recipe)
    module, own = small_module(model, compiled)
    report = make_report(compiled, recipe, module_is_own=own)
    check_gates(report, recipe.max_drop)
    return Slimmed(module, compiled.plan, report)


def compile_model(
    model: nn.Module,
    inputs: tuple[Any, ...],
    recipe: Recipe,
    *,
    program: ExportedProgram | None = None,
    resume: Resume | None = None,
    progress: Progress = lambda stage: None,
) -> Compiled:
    """trace -> simplify -> couple -> score -> budget -> shrink -> prove; again where heads go and then widths, and in
    each of several rounds. What follows in a round gives the proven graph other values. ``resume``: where fine-tuning
    keeps what it needs to go on."""
    progress("tracing the model")
    graph = simplify(trace(model, inputs, static_batch=recipe.static_batch, program=program))
    with evaluating(model):
        doubts = check_trace(model, graph, inputs)
    data = calibration(graph, recipe)
    exam = _exam(graph, recipe, data)
    heads = find_heads(graph)
    result = _heads_removed(model, graph, recipe, heads, data, progress) if recipe.attention == "both" else None
    apart = heads.heads if recipe.attention == "heads" else heads.width
    for number in range(1, recipe.iterations + 1):
        start = resized(result.small) if result else graph
        removed = _removed(
            *(model, start, _of_one_round(recipe), data, progress, apart), partial(_remaining, recipe, graph, number)
        )
        result = removed.after(result) if result else removed
        result = _recovered(result, removed if number > 1 else result, recipe, data, exam, progress)
        if recipe.finetune:
            result = _finetuned(result, model, recipe, exam, resume and resume.round(number), progress)
    assert result is not None
    notes = (*result.warnings, *doubts, *_vacuous(result, recipe.seed))
    if recipe.attention != "width" and not heads.heads:
        notes = (*notes, "no attention heads were found: widths were removed")
    return replace(result, kind="heads" if recipe.attention == "heads" else "width", warnings=notes)


def _of_one_round(recipe: Recipe) -> Recipe:
    """A share of a price is that of what the round before left."""
    if recipe.goal is None or recipe.iterations == 1:
        return recipe
    return replace(recipe, ratio=1 - (1 - recipe.ratio) ** (1 / recipe.iterations))


def _remaining(recipe: Recipe, dense: Graph, number: int, coupling: Coupling) -> list[float]:
    """How much of each group goes in round ``number``, so that a geometric share of the dense one is left: with 0.75 in
    two rounds, a half and then a half."""
    if coupling.graph is dense and recipe.iterations == 1:
        return [recipe.ratio] * len(coupling.groups)
    kept = (1 - recipe.ratio) ** (number / recipe.iterations)
    shares = [left(group, coupling.graph, dense) for group in coupling.groups]
    if recipe.scope == "global" and recipe.iterations > 1:  # one ranking: what went of one group is made up by others
        widths = [group.width for group in coupling.groups]
        whole = sum(width / share for width, share in zip(widths, shares, strict=True))
        return [max(0.0, 1 - kept * whole / sum(widths))] * len(widths)
    return [max(0.0, 1 - kept / share) for share in shares]


def _exam(dense: Graph, recipe: Recipe, data: Data | None) -> Exam:
    exam = Exam.of(dense, calibration(dense, recipe, "test") if data and data.parted else None)
    if exam.test is None and recipe.max_drop is not None:
        raise InputError("max_drop: no accuracy can be read; it takes labels, classes, and a test part of the data.")
    return exam


def _recovered(
    compiled: Compiled, last: Compiled, recipe: Recipe, data: Data | None, exam: Exam, progress: Progress
) -> Compiled:
    """With other values where something is recovered, and the accuracy before and after each step. ``last``: the passes
    since values were last changed."""
    level = recipe.recover or ("none" if data is None else "affine")
    if data is None and level == "none":
        return compiled
    progress("reading accuracy")
    before = compiled.steps or (exam.step("dense", compiled.dense),)
    removal = exam.step("removal", compiled.small)
    recovered, steps = recover(
        *(last.dense, last.small, last.kept_positions(), data, level, exam),
        recalibrate=recipe.recalibrate,
        said=progress,
    )
    return replace(compiled, small=recovered, steps=(*before, removal, *steps))


def _finetuned(
    compiled: Compiled, model: nn.Module, recipe: Recipe, exam: Exam, resume: Resume | None, progress: Progress
) -> Compiled:
    """With trained values; the accuracy they reach is read once, when training is over."""
    progress("fine-tuning")
    started = time.perf_counter()
    samples = open_samples(recipe.data, compiled.dense.inputs, mean=recipe.mean, std=recipe.std)
    whole = (compiled.dense, compiled.small, compiled.kept_positions())
    tuned = finetune(
        *(compiled.small, compiled.dense, samples, recipe),
        frozen=frozen_names(model),
        passages=passages_inside(*whole) if recipe.hints else (),
        resume=resume,
        progress=progress,
    )
    step = exam.step("fine-tuning", tuned.graph, started, **tuned.did())
    return replace(compiled, small=tuned.graph, steps=(*compiled.steps, step))


def _heads_removed(
    model: nn.Module, graph: Graph, recipe: Recipe, heads: Heads, data: Data | None, progress: Progress
) -> Compiled | None:
    """Whole heads alone, so many that as large a share of their width may follow; None where no head can go."""
    ratio = 1 - math.sqrt(1 - recipe.ratio)
    with suppress(BudgetError):
        found = _removed(
            *(model, graph, recipe, data, progress, heads.heads),
            lambda coupling: [ratio if whole else 0.0 for whole in heads.groups(coupling)],
        )
        return replace(found, kind="heads")
    return None


def _removed(
    model: nn.Module,
    graph: Graph,
    recipe: Recipe,
    data: Data | None,
    progress: Progress,
    apart: Mapping[str, Collection[int]],
    ratios: Callable[[Coupling], list[float]],
) -> Compiled:
    """One pass: ``ratios`` says how much of each group goes."""
    pinned: dict[str, str] = {}
    while True:
        progress("finding coupled channels")
        coupling = couple(graph, keep=recipe.keep, pinned_nodes=pinned, apart=apart)
        progress("ranking channels")
        scores = score(coupling, recipe.criterion, seed=recipe.seed, data=data, loss=recipe.loss, count=said(progress))
        chosen = ENGINES[recipe.engine](Task(model, coupling, scores, recipe, ratios(coupling), data, progress))
        plan = chosen.plan
        try:
            progress("removing channels")
            small, replay = shrink(coupling, plan.keep)
            progress("proving that the small model equals the masked one")
            batches = [
                graph.inputs,
                *(() if coupling.batch_holds_channels else other_batches(graph, (1,), recipe.seed)),
            ]
            proof = prove(graph, small, cut_of(coupling, plan.keep), replay, batches)
            chosen.check(small, batches)
            break
        except CutFailed as failed:  # pin what reaches that operator, and say so in the report
            if failed.node in pinned or len(pinned) >= _ATTEMPTS:
                raise ProofError(
                    f"the small model could not be proven: {failed}. Nothing was written. "
                    "This is a fault of slim-model: please report the model; --keep GLOB leaves layers out."
                ) from failed
            pinned[failed.node] = f"removing channels here could not be shown to be exact ({failed.reason})"
    costs = cost(coupling), cost(coupling, plan.keep)
    return Compiled(graph, small, coupling, plan, proof, *costs, graph.warnings, met=chosen.met)


def calibration(graph: Graph, recipe: Recipe, split: Split = "train") -> Data | None:
    """The recipe's data as batches that fit the model's inputs; of the ``test`` part, what accuracy is read from."""
    if recipe.data is None:
        return None
    return open_data(
        recipe.data,
        graph.inputs,
        samples=recipe.samples if split == "train" else recipe.test_samples,
        batch=recipe.batch,
        mean=recipe.mean,
        std=recipe.std,
        seed=recipe.seed,
        split=split,
        fixed_batch=not graph.dynamic_batch,
    )


def other_batches(graph: Graph, sizes: tuple[int, ...], seed: int) -> list[tuple[Any, ...]]:
    """Random inputs of other batch sizes; of the example's size where the batch is fixed, of which one is enough."""
    generator = torch.Generator().manual_seed(seed + 1)  # an example that was made up has ``seed``
    free = sizes if graph.dynamic_batch else (None,)
    return [tuple(_another(x, size, generator) for x in graph.inputs) for size in free]


def onnx_batches(written: Graph | Deciding, seed: int) -> list[tuple[Any, ...]]:
    """One example, which is what most will run, and random inputs of another batch size; several, where what is
    written makes decisions, which one input may not show to have been taken for all."""
    if isinstance(written, Deciding):
        others = (other_batches(written.graph, (), seed + number) for number in range(3))
        return [written.graph.inputs, *itertools.chain.from_iterable(others)]
    return [first_of(written), *other_batches(written, (2,), seed)]


def _another(x: Any, batch: int | None, generator: torch.Generator) -> Any:
    """A tensor like ``x`` with other values: normal for floats, within the range seen for integers. Of a mask the rows
    of ``x`` are taken: where a random one hides everything, attention is not defined."""
    if not isinstance(x, Tensor):
        return x
    shape = [batch, *x.shape[1:]] if batch and x.dim() else list(x.shape)
    if x.is_floating_point():
        return torch.randn(shape, generator=generator).to(x)
    low, high = (int(x.min()), int(x.max()) + 1) if x.numel() else (0, 1)
    if x.dim() and low >= 0 and high <= 2:
        return x[torch.randint(0, len(x), shape[:1], generator=generator).to(x.device)]
    return torch.randint(low, high, shape, generator=generator).to(x)


def _vacuous(result: Compiled, seed: int) -> tuple[str, ...]:
    """Outputs that do not depend on the input cannot show a fault in the exported file."""
    vary = result.proof.outputs_vary
    if vary is None:
        generator = torch.Generator().manual_seed(seed + 1)
        example = first_of(result.small)
        first, second = (result.small.run(x) for x in (example, tuple(_another(x, None, generator) for x in example)))
        vary = any(not relative_error(a, b) < 1e-6 for a, b in zip(first, second, strict=True))
    return () if vary else ("the model's output is the same for every input tried, so comparing outputs says little",)
