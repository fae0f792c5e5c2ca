"""The pipeline, one stage a line: ``compile_model``. Read it first.

    capture -> factor -> couple -> score -> choose -> shrink -> prove -> recover -> finetune

Each stage is a function in a package of its own, from frozen values to a frozen value. What comes before (a file is
loaded) and after (the small model is written, measured and reported) is in ``commands/slim.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from slim_model.budget.choose_plan import choose_plan
from slim_model.budget.goal import Task
from slim_model.budget.plan import plan_of
from slim_model.calling.arguments import Arguments
from slim_model.calling.boxes import BoxForm
from slim_model.cost.counted import cost
from slim_model.cost.latency_store import width_step
from slim_model.coupling.attention_heads import Heads, couple_attention, find_heads
from slim_model.coupling.rank_groups import only
from slim_model.cutting.cut import CutFailed, cut_of
from slim_model.cutting.resize import resize
from slim_model.cutting.shrink_graph import shrink
from slim_model.data.accuracy import Exam, Step
from slim_model.data.augmentation import choose_augmentations
from slim_model.data.label_check import label_fault
from slim_model.data.open_sources import Sources, open_sources
from slim_model.errors import BudgetError, InputError, ProofError
from slim_model.factoring.factor import Factoring, factor
from slim_model.factoring.prove_same import prove_same
from slim_model.factoring.ranks import scores_with_ranks, settle
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import batch_of
from slim_model.pipeline.compiled import Compiled, Removed
from slim_model.pipeline.example_batches import other_batches
from slim_model.pipeline.known import Known
from slim_model.pipeline.passes import Pass, passes_of
from slim_model.progress import Progress, count_in_text, say_nothing
from slim_model.proof.capture import capture
from slim_model.proof.prove import prove
from slim_model.proof.silenced import prove_silenced
from slim_model.ranking.criteria import ranking_of
from slim_model.ranking.score import score
from slim_model.recipe import Recipe
from slim_model.recovery.cut_points import inner_cut_points
from slim_model.recovery.recover import recover
from slim_model.training.finetune import Lesson, check_samples, finetune
from slim_model.training.resume import Resume
from slim_model.training.training_graph import frozen_names

_ATTEMPTS = 40  # each failed attempt pins one more operator


def compile_model(
    model: nn.Module,
    inputs: Arguments | tuple[Any, ...],
    recipe: Recipe,
    *,
    program: ExportedProgram | None = None,
    graph: Graph | None = None,
    resume: Resume | None = None,
    known: Known | None = None,
    check: Callable[[Graph], None] | None = None,
    boxes: BoxForm | None = None,
    progress: Progress = say_nothing,
) -> Compiled:
    """A small graph that was proven to equal the masked dense one, for the goal that ``recipe`` names.

    ``program``: the model's own export, where there is one; ``graph``: what ``capture`` made of the model already.
    ``resume``: where fine-tuning keeps what it needs to go on. ``known``: what runs on the same model and inputs share.
    ``check``: refuses a graph that its caller has no use for. ``boxes``: how its output tells them, if it does. Raises
    InputError, BudgetError or ProofError.
    """
    progress("tracing the model")
    recipe = recipe.decided()
    if recipe.budget.depth:
        raise InputError("--depth takes whole layers where a folder is written, and goes nowhere else. Leave it out.")
    if recipe.budget.residual:
        raise InputError("--residual is for folders; elsewhere hidden channels go without it. Leave it out.")
    known = known or Known()
    traced = partial(capture, model, inputs, recipe.tracing, program=program)
    dense = graph or known.once("graph", recipe.tracing, traced)  # one ATen graph, checked on the inputs
    if check is not None:
        check(dense)
    dense = replace(dense, outputs=replace(dense.outputs, boxes=boxes))  # by which outputs are then compared
    shared = _Shared.open(
        model, dense, recipe, resume, known, progress
    )  # the data, and what is known of the dense graph
    result = Compiled(dense, dense, block=width_step(recipe.budget.multiple_of, recipe.measuring.device))
    for one in passes_of(recipe, result.block):  # whole heads first, then widths; a geometric share a round
        removed = _remove(shared, result, one)  # couple, score, choose, shrink, prove
        if removed is None:
            continue
        result = result.after(removed)
        if one.round:
            result = _recover(shared, result)  # other values that compensate, without labels
            result = _finetune(shared, result, one.round)  # values trained with the dense model as teacher
    return replace(result, warnings=_warnings(shared, result))


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all passes share."""

    model: nn.Module
    dense: Graph
    recipe: Recipe
    heads: Heads
    sources: Sources
    exam: Exam
    resume: Resume | None
    known: Known
    progress: Progress
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        model: nn.Module,
        dense: Graph,
        recipe: Recipe,
        resume: Resume | None,
        known: Known,
        progress: Progress,
    ) -> _Shared:
        """Opens the data; whatever can be refused is refused here, before any work is done."""
        sources = open_sources(recipe.data, dense, seed=recipe.seed, training=recipe.training.finetune > 0)
        if sources.training:
            check_samples(recipe.training, sources.training)
        if recipe.varies_pictures:
            choose_augmentations(recipe.training.augment, dense.inputs)
        notes = _check_labels(recipe, sources, dense)
        exam = Exam.of(dense, sources.test)
        if exam.test is None and recipe.gates.max_drop is not None:
            raise InputError(
                "max_drop: no accuracy can be read; it takes labels, classes, and a test part of the data."
            )
        return cls(model, dense, recipe, find_heads(dense), sources, exam, resume, known, progress, notes)


def _check_labels(recipe: Recipe, sources: Sources, dense: Graph) -> tuple[str, ...]:
    """Raise InputError where labels are needed as classes and are none; a note where they are not needed."""
    data = sources.calibration
    if data is None or not data.labelled or recipe.ranking.loss is not None:
        return ()
    if (fault := label_fault(data, dense)) is None:
        return ()
    ranks = ranking_of(recipe.ranking.ranked_by).needs in ("labels", "loss")
    trains = recipe.training.finetune > 0 and not (recipe.training.distill and recipe.training.alpha == 1)
    if ranks or trains or recipe.gates.max_drop is not None:
        raise InputError(
            f"{data.name}: {fault}. Give class numbers from 0, one for each sample, or a loss of your own: "
            "loss=callable in Python."
        )
    return (f"{data.name}: {fault}; labels were left aside",)


def _remove(shared: _Shared, result: Compiled, one: Pass) -> Removed | None:
    """One proven pass. An operator whose channels cannot be cut exactly is pinned, and the pass begins anew."""
    start = resize(result.small) if result.passes else shared.dense
    factoring = _factored(shared, start)
    pinned: dict[str, str] = {}
    while True:
        try:
            return _removed(shared, start, factoring, one, pinned)
        except BudgetError:
            if one.optional:
                return None
            raise
        except CutFailed as failed:
            if failed.node in pinned or len(pinned) >= _ATTEMPTS:
                raise ProofError(
                    f"the small model could not be proven: {failed}. Nothing was written. "
                    "This is a fault of slim-model: please report the model; --keep GLOB leaves layers out."
                ) from failed
            pinned[failed.node] = f"removing channels here could not be shown to be exact ({failed.reason})"


def _factored(shared: _Shared, graph: Graph) -> Factoring | None:
    """How the layers of ``graph`` are written as several in a row, where that is asked for; proven to be the same."""
    recipe = shared.recipe
    if not recipe.factoring.low_rank:
        return None
    data, keep = shared.sources.calibration, recipe.coupling.keep
    factoring = factor(graph, recipe.factoring.forms, keep, data, progress=shared.progress)
    shared.progress("proving that the factored model equals the dense one")
    return prove_same(factoring, _batches(graph, 1, recipe.seed))


def _batches(graph: Graph, batch: int, seed: int) -> list[tuple[Any, ...]]:
    """The example, and others: what holds for one batch size alone shows at another."""
    return [graph.inputs, *other_batches(graph, (batch,), seed)]


def _removed(shared: _Shared, graph: Graph, factoring: Factoring | None, one: Pass, pinned: dict[str, str]) -> Removed:
    recipe, data, progress = shared.recipe, shared.sources.calibration, shared.progress
    progress("finding coupled channels")
    coupled = partial(
        couple_attention,
        loses=one.loses,
        heads=shared.heads,
        keep=recipe.coupling.keep,
        pinned_nodes=pinned,
        equal_pieces=recipe.coupling.equal_pieces,
    )
    coupling = coupled(graph)
    heads = tuple(shared.heads.groups(coupling)) if one.goal.whole_heads else ()
    if one.goal.whole_heads and not any(heads):
        raise BudgetError("no whole attention head can go.")
    progress("ranking channels")
    ranking, count = recipe.ranking, count_in_text(progress, "ranking channels")
    # Scores rank the channels within a group; what a goal takes of which group is the engine's part.
    rank = partial(score, coupling, ranking.ranked_by, seed=recipe.seed, data=data, loss=ranking.loss, count=count)
    if graph is shared.dense and isinstance(recipe.data.data, str | None):  # other runs on this model rank the same
        follows_from = (one.loses, tuple(pinned), recipe.coupling, ranking, recipe.seed, recipe.data, recipe.tracing)
        scores = shared.known.once("scores", follows_from, rank)
    else:
        scores = rank()
    if factoring:  # the ranks of layers are channels beside the others, with scores of their own
        started, coupling = coupling, coupled(factoring.graph)
        scores = scores_with_ranks(coupling, factoring, started, scores)
        if not recipe.factoring.widths:
            coupling, scores = only(coupling, scores, "ranks")
    before = factoring.graph if factoring else shared.dense  # ranks go in the first pass alone
    options = recipe.measuring, recipe.quantizing, recipe.recovery.recover or "none"
    back = partial(settle, factoring=factoring, couple_again=coupled) if factoring else None
    task = Task(shared.model, before, coupling, scores, one.goal, heads, data, *options, progress, graph, back)
    choice = choose_plan(task)
    # Shrinking replays on the small graph what was decided on the dense one; the proof holds it to that replay.
    plan = choice.plan
    if back:  # layers whose ranks do not pay are multiplied back
        coupling, kept, silent = back(coupling, plan.keep, silent=plan.silent, pays=choice.pays)
        plan = plan_of(coupling, kept, silent)
    progress("removing channels")
    small, replay = shrink(coupling, plan.keep)
    progress("proving that the small model equals the masked one")
    batches = _batches(graph, batch_of(graph.inputs) if coupling.batch_holds_channels else 1, recipe.seed)
    proof = prove(coupling.graph, small, cut_of(coupling, plan.keep), replay, batches)
    proof = replace(proof, factored_max_rel_error=factoring.error if factoring else None)
    choice.check(small, batches)
    small = prove_silenced(coupling, small, plan.keep, plan.silent, batches)
    return Removed(
        loses=one.loses,
        coupling=coupling,
        plan=plan,
        small=small,
        proof=proof,
        dense_cost=cost(coupling),
        slim_cost=cost(coupling, plan.counted(coupling)),
        met=choice.met,
        scan=choice.scan,
    )


def _recover(shared: _Shared, result: Compiled) -> Compiled:
    """Compensate for the removed channels, and record test accuracy before, after removal and after each step.

    What the rounds before removed is compensated for already: from the second round on the small graph is fitted to
    what it was given.
    """
    recovery, data = shared.recipe.recovery, shared.sources.calibration
    level = recovery.recover or "none"
    if data is None and level == "none":
        return result
    shared.progress("reading accuracy")
    before = result.steps or (_dense_step(shared),)
    removal = shared.exam.step("removal", result.small)
    since = len(result.passes) - 1 if result.steps else 0
    recovered, steps = recover(
        result.passes[since].dense,
        result.small,
        result.kept_positions(since),
        data,
        level,
        shared.exam,
        recalibrate=recovery.recalibrate,
        augment=shared.recipe.training.augment,
        progress=shared.progress,
    )
    return replace(result, small=recovered, steps=(*before, removal, *steps))


def _dense_step(shared: _Shared) -> Step:
    read, recipe = partial(shared.exam.step, "dense", shared.dense), shared.recipe
    if not isinstance(recipe.data.data, str):
        return read()
    return shared.known.once("accuracy", (recipe.data, recipe.seed, recipe.tracing), read)


def _finetune(shared: _Shared, result: Compiled, number: int) -> Compiled:
    """Train the small graph; the accuracy that it reaches is read once, when training is over."""
    training, recipe = shared.recipe.training, shared.recipe
    if not training.finetune:
        return result
    assert shared.sources.training is not None
    shared.progress("fine-tuning")
    started = time.perf_counter()
    tuned = finetune(
        result.small,
        result.start if training.hints else result.dense,
        shared.sources.training,
        lesson_of(recipe),
        frozen=frozen_names(shared.model, result.small.folded, result.small.factored) | result.silent_weights(),
        cut_points=inner_cut_points(result.start, result.small, result.kept_positions()) if training.hints else (),
        resume=shared.resume and shared.resume.round(number),
        progress=shared.progress,
    )
    step = shared.exam.step("fine-tuning", tuned.graph, started, **tuned.did())
    return replace(result, small=tuned.graph, steps=(*result.steps, step))


def lesson_of(recipe: Recipe) -> Lesson:
    """How the recipe trains."""
    return Lesson(
        options=recipe.training,
        batch=recipe.data.batch,
        loss=recipe.ranking.loss,
        device=recipe.measuring.device,
        seed=recipe.seed,
        recipe=recipe.options(),
    )


def _warnings(shared: _Shared, result: Compiled) -> tuple[str, ...]:
    """What the user should know of the trace, of the proof, and of what was asked for."""
    notes = [*shared.dense.warnings, *shared.notes]
    if same := result.proof.same_inputs:
        notes.append(f"only one value of {', '.join(same)} was tried: the model takes no other that was found")
    elif not result.proof.outputs_vary:
        notes.append("the model's output is the same for every input tried, so comparing outputs says little")
    if gone := [one.coupling.groups[number].name for one in result.passes for number in one.plan.silent]:
        notes.append(
            f"nothing reads {', '.join(gone)} any more: these branches are left out of the ONNX file, and their blocks "
            "are shortcuts there; in PyTorch one channel of each stays, read with weights of zero"
        )
    if shared.recipe.coupling.attention != "width" and not shared.heads.heads:
        notes.append("no attention heads were found: widths were removed")
    notes += [f"{name} does nothing without {needed}" for name, needed in shared.recipe.idle().items()]
    return tuple(notes)
