"""The int8 stage of a run: the proven fp32 file -> an int8 file, and where each of them goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from slim_model.atomic_write import beside
from slim_model.data.accuracy import Step
from slim_model.data.open_sources import open_sources
from slim_model.errors import InputError
from slim_model.graph.graph import Graph, first_sample
from slim_model.graph.tensor_trees import tensors_among
from slim_model.progress import Progress
from slim_model.quantizing.quantize import Quantized, quantize
from slim_model.quantizing.samples import collect
from slim_model.quantizing.search import Limits
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job


def check_int8(job: Job) -> None:
    """Raise InputError where options of int8 are given without it, or with a device that has no int8 here."""
    if job.outputs.keep_fp32 and not job.recipe.quantizing.int8:
        raise InputError("--keep-fp32 names the file before int8; without --int8, OUT.onnx is that file. Leave it out.")
    if job.recipe.quantizing.int8 and job.recipe.measuring.device != "cpu":
        raise InputError("--int8 chooses the form by its speed on the CPU; leave out --device.")


def make_int8(
    file: Path, target: Path, small: Graph, recipe: Recipe, progress: Progress
) -> tuple[Quantized, list[str]]:
    """``file``, the fp32 file of ``small``, as int8 in ``target``, if it is right and faster; and notes."""
    sources = open_sources(recipe.data, small, seed=recipe.seed, training=False)
    assert sources.calibration is not None
    stored = onnx.load(file, load_external_data=False).graph
    constants = {tensor.name for tensor in stored.initializer}
    samples = collect(sources.calibration, small, [x.name for x in stored.input if x.name not in constants])
    measuring = recipe.measuring
    limits = Limits(
        measuring.threads,
        tensors_among(first_sample(small)) if measuring.bench else None,
        recipe.gates.max_drop,
        small.outputs.boxes,
    )
    result = quantize(file, target, samples, recipe.quantizing, limits, test=sources.test, progress=progress)
    return result, samples.notes if result.written else [*samples.notes, result.why]


def int8_step(result: Quantized | None, seconds: float) -> list[Step]:
    """What int8 did to the accuracy, where it was written."""
    if result is None or not result.written:
        return []
    return [Step("int8", round(seconds, 3), result.int8_accuracy, {"form": result.form, "agreement": result.agreement})]


def put_in_place(result: Quantized, int8: Path, out: Path, keep_fp32: Path | None) -> None:
    """``out``, the fp32 file, becomes int8 where that was written; ``keep_fp32`` is given the fp32 file in any case."""
    if keep_fp32:
        with beside(keep_fp32) as temporary:
            shutil.copyfile(out, temporary)
    if result.written:
        shutil.copyfile(int8, out)
