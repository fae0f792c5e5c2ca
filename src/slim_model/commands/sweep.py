"""``slim-model sweep RECIPE --ratio 0.3,0.5``: the same run with other values of some options, side by side."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slim_model.atomic_write import beside
from slim_model.commands.outputs import publish
from slim_model.commands.point_search import searched
from slim_model.commands.slim import SharedWork, run_job
from slim_model.commands.tracking import tracked
from slim_model.cost.latency_store import width_step
from slim_model.errors import InputError, SlimError
from slim_model.export.options import OutputOptions
from slim_model.export.to_onnx import external_weights
from slim_model.folders.as_subject import load_source
from slim_model.pipeline.known import Known
from slim_model.progress import Progress
from slim_model.recipe_files.job import Job
from slim_model.recipe_files.write import sections_of
from slim_model.reporting.condition import Condition
from slim_model.reporting.headline import latency_of
from slim_model.reporting.report import as_decided
from slim_model.strict_json import strict_json

_LONGEST = 120  # characters of a file's name, behind which there are endings and what temporary folders add
_INT8 = ("int8", "int8_form", "int8_anyway")
"""Options that a report has as the clock decided them, where int8 was left to it."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """``axes``: options by name, each with the values to try. Files are written in ``folder``, two a point; the fastest
    point that meets ``best`` becomes OUT.onnx of ``job``. ``search``: so many points, chosen as they go; None: all."""

    job: Job
    axes: Mapping[str, Sequence[Any]]
    folder: Path
    best: Condition | None = None
    search: int | None = None


@dataclass(slots=True)
class Swept:
    """``reports`` of the points, as JSON has them, and why others ``failed``, by name; ``best``: the chosen one."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, SlimError] = field(default_factory=dict)
    best: str | None = None


def run_sweep(sweep: Sweep, progress: Progress) -> Swept:
    """Run every point that has no report yet. The model is loaded, traced and ranked once, and its dense ONNX file
    written once; a point that fails is told of, and the others go on. Raises InputError where IN cannot be used."""
    points = dict(_points(sweep))
    _make(sweep.folder)
    job, result = sweep.job, Swept()
    progress(f"reading {job.source.path.name}")
    subject = load_source(job.source.path, job.source.options, seed=job.recipe.seed)
    with tempfile.TemporaryDirectory() as place:
        works = {job.recipe.seed: SharedWork(subject, Known(), Path(place))}
        for number, name in enumerate(_order(sweep, list(points), result), start=1):
            point = points[name]
            told = _told(f"{number} of {min(sweep.search or len(points), len(points))}, {name}", progress)
            # A sweep that was stopped goes on: a point that has its report is not run again.
            report = _written_before(point, subject.sha256)
            try:
                if report is None:
                    with tracked(point, told) as tell:
                        made = run_job(point, told, _work(works, point), tell=tell)
                    assert made is not None
                    report = json.loads(made.as_json())
                result.reports[name] = report
            except SlimError as error:
                result.failed[name] = error
                told(f"failed: {error}")
    if sweep.best:
        result.best = fastest(result.reports, sweep.best)
    # OUT is the best point's file, copied so that the folder keeps every point.
    if result.best:
        chosen = points[result.best]
        _copy(chosen.target, job.target)
        if job.outputs.report:
            publish(job.outputs.report, _report_of(result.reports[result.best], chosen, job))
    return result


def _order(sweep: Sweep, names: list[str], result: Swept) -> Iterator[str]:
    """The points to run, one after the other; a search looks at what ``result`` has by then."""
    if sweep.search is None:
        return iter(names)
    return searched(sweep.axes, names, result.reports, count=sweep.search, seed=sweep.job.recipe.seed)


def _work(works: dict[int, SharedWork], point: Job) -> SharedWork:
    """What is shared by points of the same seed, from which example inputs are drawn."""
    seed = point.recipe.seed
    if seed not in works:
        one = next(iter(works.values()))
        works[seed] = replace(
            one, subject=load_source(point.source.path, point.source.options, seed=seed), known=Known()
        )
    return works[seed]


def _report_of(report: Mapping[str, Any], chosen: Job, job: Job) -> str:
    """The report of the chosen point as one of a run that wrote ``job``'s files, so that it can be repeated."""
    assert job.outputs.report
    written = sections_of(replace(chosen, target=job.target, outputs=job.outputs), job.outputs.report.parent)
    places = {name: written[name] for name in ("source", "outputs")}
    return strict_json(dict(report) | {"recipe": report["recipe"] | places})


def fastest(reports: Mapping[str, Mapping[str, Any]], condition: Condition) -> str | None:
    """The name of the report with the lowest latency among those that meet ``condition``, of multiply-adds where none
    was measured; None where none meets it."""
    meeting = {name: report for name, report in reports.items() if condition.holds(report)}

    def cost(name: str) -> tuple[float, float]:
        return latency_of(meeting[name]) or math.inf, meeting[name]["slim"]["macs"]

    return min(meeting, key=cost, default=None)


def _points(sweep: Sweep) -> Iterator[tuple[str, Job]]:
    """Each combination of values, by a name that is also its files'. Raises InputError where a recipe cannot be."""
    for values in itertools.product(*sweep.axes.values()):
        changes = dict(zip(sweep.axes, values, strict=True))
        name = ",".join(f"{option}={_typed(value)}" for option, value in changes.items()) or "as_it_is"
        stem = _stem(name)
        try:
            recipe = sweep.job.recipe.but(**changes)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        report = sweep.folder / f"{stem}.json"
        outputs = replace(sweep.job.outputs, save=None, summary=None, report=report)
        yield name, replace(sweep.job, recipe=recipe, target=sweep.folder / f"{stem}.onnx", outputs=outputs)


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _stem(name: str) -> str:
    """What the files of a point are called: its name, as far as any system takes it, and one of its own."""
    stem = re.sub(r"[^\w.,=+-]", "_", name)[:_LONGEST]
    return stem if stem == name else f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _written_before(point: Job, sha256: str) -> dict[str, Any] | None:
    """The report of an earlier sweep that was stopped, where it tells of the same run on the same file."""
    assert point.outputs.report
    block = width_step(point.recipe.budget.multiple_of, point.recipe.measuring.device)
    asked = sections_of(replace(point, recipe=as_decided(point.recipe, block)), point.outputs.report.parent)
    try:
        report = json.loads(point.outputs.report.read_text(encoding="utf-8"))
        same = _choices(report["recipe"], point) == _choices(asked, point) and report["source"]["sha256"] == sha256
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, cut, or something else
        return None
    return report if same and point.target.exists() else None


def _choices(sections: Mapping[str, Any], point: Job) -> dict[str, Any]:
    """Options by section, without places, and without what a run of ``point`` decides by the clock."""
    decided = _INT8 if point.recipe.quantizing.int8 and point.recipe.quantizing.int8_form is None else ()
    return {
        name: {key: value for key, value in section.items() if key not in decided}
        for name, section in sections.items()
        if isinstance(section, dict) and name != "outputs"
    }


def _told(point: str, progress: Progress) -> Progress:
    return lambda stage: progress(f"[{point}] {stage}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}. Give another with --into.") from error


def _copy(source: Path, target: Path) -> None:
    """The ONNX file, and weights that lie beside it under the name that it knows them by, at once."""
    weights = external_weights(source)
    with beside(target) as temporary:
        shutil.copyfile(source, temporary)
        if weights.exists():
            shutil.copyfile(weights, temporary.with_name(weights.name))


def no_outputs(outputs: OutputOptions) -> None:
    """Raise InputError where ``outputs`` ask for files that only a single run writes."""
    for name in ("save", "html", "model_card", "write_recipe", "keep_fp32"):
        if getattr(outputs, name):
            raise InputError(f"a sweep does not write {name}, which tells of one point. Leave it out, and give it to "
                             "slim-model run with the report of the point you choose.")  # fmt: skip
