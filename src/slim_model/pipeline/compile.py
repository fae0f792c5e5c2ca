"""The pipeline, one stage a line. Read this first.

    load -> trace -> simplify -> couple -> score -> budget -> shrink -> prove -> recover -> finetune -> export
        -> measure -> report

Each stage is a function in the file of its name, from frozen values to a frozen value.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from slim_model.budget.engines import ENGINES, Task
from slim_model.cost.counted import cost
from slim_model.coupling.attention_heads import Heads, find_heads
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import CutFailed, cut_of
from slim_model.cutting.resize import resize
from slim_model.cutting.shrink_graph import shrink
from slim_model.data.accuracy import Exam
from slim_model.data.batches import Data
from slim_model.data.datasets import Split
from slim_model.data.open_data import open_data
from slim_model.data.training_samples import open_samples
from slim_model.errors import BudgetError, InputError, ProofError
from slim_model.graph.graph import Graph, first_of
from slim_model.graph.modes import evaluating
from slim_model.graph.trace import trace
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import another_like, other_batches
from slim_model.pipeline.rounds import recipe_of_one_round, shares_of_round
from slim_model.progress import Progress, counted, silent
from slim_model.proof.check_trace import check_trace
from slim_model.proof.prove import prove
from slim_model.proof.tolerance import relative_error
from slim_model.ranking.score import score
from slim_model.recipe import Recipe
from slim_model.recovery import recover
from slim_model.recovery.cut_points import passages_inside
from slim_model.simplifying.simplify import simplify
from slim_model.training.finetune import finetune
from slim_model.training.resume import Resume
from slim_model.training.training_graph import frozen_names

_ATTEMPTS = 40  # each failed attempt pins one more operator


def compile_model(
    model: nn.Module,
    inputs: tuple[Any, ...],
    recipe: Recipe,
    *,
    program: ExportedProgram | None = None,
    resume: Resume | None = None,
    progress: Progress = silent,
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
        start = resize(result.small) if result else graph
        removed = _removed(
            *(model, start, recipe_of_one_round(recipe), data, progress, apart),
            partial(shares_of_round, recipe, graph, number),
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
        progress=progress,
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
        frozen=frozen_names(model, compiled.small.folded),
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
        scores = score(
            coupling, recipe.criterion, seed=recipe.seed, data=data, loss=recipe.loss, count=counted(progress)
        )
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


def _vacuous(result: Compiled, seed: int) -> tuple[str, ...]:
    """Outputs that do not depend on the input cannot show a fault in the exported file."""
    vary = result.proof.outputs_vary
    if vary is None:
        generator = torch.Generator().manual_seed(seed + 1)
        example = first_of(result.small)
        first, second = (
            result.small.run(x) for x in (example, tuple(another_like(x, None, generator) for x in example))
        )
        vary = any(not relative_error(a, b) < 1e-6 for a, b in zip(first, second, strict=True))
    return () if vary else ("the model's output is the same for every input tried, so comparing outputs says little",)
