"""A checkpoint and a recipe -> a smaller folder, proven. The list of stages, as ``pipeline.compile`` is for graphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.folders.choose import check_ranking, kept_units
from slim_model.folders.depth import check_depth, shallower
from slim_model.folders.finetune import Trained, check_logits, check_training, finetune_folder
from slim_model.folders.masked import masked_dense
from slim_model.folders.plan import Plan, plan_folder
from slim_model.folders.prove import FolderProof, prove_folder
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.refit import refit
from slim_model.folders.running import (
    Point,
    in_float32,
    inputs_of,
    load_folder,
    longest,
    perplexity,
    products_in,
    watch,
    what_is_read,
)
from slim_model.folders.stream import hidden_by_data, hidden_by_weights, norm_points, refit_points
from slim_model.folders.tokens import SAMPLES, Tokens, read_pictures, read_tokens
from slim_model.folders.widths.hidden import Hidden, Norm
from slim_model.folders.widths.sites import Site
from slim_model.folders.write import Kept, write_folder
from slim_model.progress import Progress, say_nothing
from slim_model.ranking.criteria import Ranking, ranking_of
from slim_model.ranking.evidence.moments import Covariances, Variances
from slim_model.recipe import Recipe

_HEEDED = {
    "ratio",
    "criterion",
    "multiple_of",
    "data",
    "samples",
    "recover",
    "seed",
    "bench",
    "depth",
    "residual",
    "finetune",
    "optimizer",
    "lr",
    "temperature",
    "precision",
    "mean",
    "std",
    "batch",
}
"""The options that a folder's run heeds; ``bench`` has nothing to measure."""
_LEVELS = ("none", "bias", "affine")


def decided(recipe: Recipe) -> Recipe:
    """The recipe with a value for what was left open, which is less than for other models: a text has many tokens."""
    has_text = recipe.data.data is not None
    return recipe.but(
        criterion=recipe.ranking.criterion or ("power" if has_text else "l1"),
        recover=recipe.recovery.recover or ("affine" if has_text else "none"),
        samples=recipe.data.samples or SAMPLES,
    )


@dataclass(frozen=True, slots=True)
class SlimFolder:
    """What was done, with the ``recipe`` as it was used. ``perplexity``: of the text held out, by step; empty without
    text, or of a model that predicts no next word. ``trained``: what fine-tuning did, if it was asked for."""

    plan: Plan
    recipe: Recipe
    proof: FolderProof
    level: str
    perplexity: dict[str, float]
    text: Tokens | None
    trained: Trained | None = None


def check_recipe(recipe: Recipe) -> None:
    """Raise InputError where an option is given that means nothing for a folder."""
    plain = Recipe().options()
    for name, value in recipe.options().items():
        if name not in _HEEDED and value != plain[name]:
            raise InputError(
                f"--{name.replace('_', '-')} is not there where a folder is written. Leave it out, or give OUT.onnx."
            )
    if recipe.recovery.recover not in (None, *_LEVELS):
        raise InputError(f"--recover {recipe.recovery.recover} is not there for folders: {', '.join(_LEVELS)}.")
    check_ranking(ranking_of(decided(recipe).ranking.ranked_by))


def slim_folder(checkpoint: Checkpoint, place: Path, recipe: Recipe, progress: Progress = say_nothing) -> SlimFolder:
    """Fill the empty folder ``place`` with ``checkpoint`` made smaller. Raises SlimError where that cannot be."""
    step = None if recipe.budget.multiple_of == "auto" else int(recipe.budget.multiple_of)
    widths = partial(plan_folder, ratio=recipe.budget.share_removed, step=step, residual=recipe.budget.residual)
    plan = widths(checkpoint)
    recipe = decided(recipe)
    level = recipe.recovery.recover or "none"
    _check_level(plan, level)
    if recipe.budget.depth:
        check_depth(checkpoint, recipe.budget.depth, has_data=recipe.data.data is not None)
    check_training(plan, recipe)
    text, seen = None, dict[str, float]()
    # With text the dense model runs, and each layer is ranked and refitted as soon as it has read all of it.
    if recipe.data.data is not None:
        progress("loading the dense model")
        dense = load_folder(checkpoint.path, checkpoint.dtype).model
        text = _read(checkpoint, dense, recipe)
        with in_float32(dense), products_in(checkpoint.dtype):
            check_logits(dense, recipe)
            seen |= _measured("dense", dense, text)
            if recipe.budget.depth:
                progress("choosing layers")
                checkpoint = shallower(checkpoint, dense, text.fit, recipe.budget.depth)
                plan = widths(checkpoint)
        if checkpoint.gone:
            tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
            dense = load_folder(checkpoint.path, checkpoint.dtype, tensors, checkpoint.config).model
        with in_float32(dense), products_in(checkpoint.dtype):
            if checkpoint.gone:
                seen |= _measured("fewer layers", dense, text)
            kept = _kept_by_data(plan, dense, text, recipe, level, progress)
        del dense
        if kept.refitted:
            seen |= _measured_masked("cut", Kept(plan, kept.units), text)
    else:
        kept = _kept_by_weights(plan, recipe, progress)
    progress("writing the folder")
    write_folder(kept, place)
    progress("loading it again, and comparing with the masked dense model")

    def measure(small: Any) -> None:
        if text:
            with products_in(checkpoint.dtype):
                seen.update(_measured("refitted" if kept.refitted else "cut", small, text))

    proof = prove_folder(kept, place, recipe.seed, measure)
    trained = None
    if recipe.training.finetune and text:
        trained = finetune_folder(plan, place, text.fit, recipe, progress)
        seen |= _measured("trained", load_folder(place, torch.float32).model, text)
    return SlimFolder(plan, recipe, proof, level, seen, text, trained)


def _read(checkpoint: Checkpoint, dense: Any, recipe: Recipe) -> Tokens:
    """Text for a model that reads words alone, pictures for one that sees them alone."""
    inputs = inputs_of(dense, recipe.seed)
    is_text = str(recipe.data.data).startswith("text:")
    if list(inputs) == ["input_ids"]:
        return read_tokens(checkpoint, recipe.data, longest(dense.config))
    if list(inputs) == ["pixel_values"] and not is_text:
        return read_pictures(checkpoint, recipe.data, inputs["pixel_values"], recipe.seed)
    raise InputError(
        f"a {checkpoint.config['model_type']} reads no {'text' if is_text else 'such data'}, or not alone. Leave out "
        "--data and --recover, or give OUT.onnx."
    )


def _check_level(plan: Plan, level: str) -> None:
    readers = (axis.tensor.removesuffix("weight") for part in plan.parts for axis in part.readings)
    if level == "bias" and not any(f"{reader}bias" in plan.checkpoint.tensors for reader in readers):
        raise InputError(
            f"--recover bias needs biases, and the reading layers of a {plan.checkpoint.config['model_type']} have "
            "none. Give --recover affine, or none."
        )


def _kept_by_weights(plan: Plan, recipe: Recipe, progress: Progress) -> Kept:
    ranking = ranking_of(recipe.ranking.ranked_by)
    units = dict[Site | Hidden, Tensor]()
    for number, site in enumerate(plan.sites):
        progress(f"ranking {number + 1} of {len(plan.sites)}")
        count = plan.kept[site.name][0]
        units[site] = kept_units(plan.checkpoint, site, count, ranking, recipe.seed + number, {})
    if hidden := plan.hidden:
        progress("ranking hidden channels")
        count = plan.kept[hidden.name][0]
        units[hidden] = hidden_by_weights(plan.checkpoint, hidden, count, ranking, recipe.seed + len(plan.sites))
    return Kept(plan, units)


def _kept_by_data(plan: Plan, dense: Any, text: Tokens, recipe: Recipe, level: str, progress: Progress) -> Kept:
    ranking: Ranking = ranking_of(recipe.ranking.ranked_by)
    units, refitted, points = dict[Site | Hidden, Tensor](), dict[str, Tensor](), list[Point]()
    # Hidden channels are those of all layers: they are ranked ahead, so that one more run can refit each layer.
    if hidden := plan.hidden:
        progress("ranking hidden channels")
        seen, count = dict[Norm, Variances](), plan.kept[hidden.name][0]
        watch(dense, norm_points(dense, hidden, seen), text.fit, pairs=False)
        seed = recipe.seed + len(plan.sites)
        units[hidden] = hidden_by_data(plan.checkpoint, hidden, count, ranking, seed, seen)
        if level != "none":
            points += refit_points(dense, plan.checkpoint, hidden, units[hidden], level, refitted)

    def visit(number: int, site: Site, pairs: Covariances | None, alone: Variances) -> None:
        progress(f"ranking {number + 1} of {len(plan.sites)}")
        held = {"moments": alone, "covariance": pairs}
        statistics = {name: held[name] for name in ranking.statistics}
        count = plan.kept[site.name][0]
        units[site] = kept_units(plan.checkpoint, site, count, ranking, recipe.seed + number, statistics)
        if level != "none" and (pairs or site.bias):
            refitted.update(_refitted(plan.checkpoint, site, units[site], pairs, alone, level))

    points += [what_is_read(dense, site, partial(visit, number, site)) for number, site in enumerate(plan.sites)]
    watch(dense, points, text.fit, pairs=level == "affine" or "covariance" in ranking.statistics)
    return Kept(plan, units, refitted)


def _refitted(
    checkpoint: Checkpoint, site: Site, units: Tensor, pairs: Covariances | None, alone: Variances, level: str
) -> dict[str, Tensor]:
    """The reading layer of a site with what makes up for the units that go."""
    weight = checkpoint.read(site.reads.tensor)
    bias = checkpoint.read(site.bias) if site.bias else None
    kept = site.reads.positions(units, site.units)
    matrix = weight if site.reads.axis == 1 else weight.T
    small, constant = refit(matrix, bias, kept, pairs or alone, slopes=level == "affine")
    result = {site.reads.tensor: (small if site.reads.axis == 1 else small.T).contiguous()}
    return result | ({site.bias: constant} if site.bias and constant is not None else {})


def _measured(step: str, model: Any, text: Tokens) -> dict[str, float]:
    """The perplexity under the name of the step, where the model predicts next words."""
    return {step: perplexity(model, text.held_out)} if type(model).__name__.endswith(_PREDICTS) else {}


def _measured_masked(step: str, kept: Kept, text: Tokens) -> dict[str, float]:
    model = masked_dense(kept).model
    with in_float32(model), products_in(kept.plan.checkpoint.dtype):
        return _measured(step, model, text)


_PREDICTS = ("ForCausalLM", "LMHeadModel")
