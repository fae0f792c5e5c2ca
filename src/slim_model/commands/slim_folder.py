"""``slim-model FOLDER OUT-FOLDER``: a folder of transformers in, a smaller one out, and --report."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from slim_model.commands.outputs import check_output_paths, publish
from slim_model.errors import InputError
from slim_model.export.options import OutputOptions
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.report import card, report_of
from slim_model.folders.slim_folder import check_recipe, slim_folder
from slim_model.folders.write import check_target, folder_beside
from slim_model.loading.source import SourceOptions
from slim_model.progress import Progress
from slim_model.recipe_files.job import Job
from slim_model.strict_json import strict_json


def run_folder_job(job: Job, progress: Progress) -> dict[str, Any]:
    """open -> plan -> rank -> write -> prove -> report; OUT appears when all is done. Returns the report."""
    started = time.perf_counter()
    _check(job)
    progress(f"reading {job.source.path.name}")
    checkpoint = open_checkpoint_folder(job.source.path)
    with folder_beside(job.target) as place:
        result = slim_folder(checkpoint, place, job.recipe, progress)
        report = report_of(result, time.perf_counter() - started)
        with open(place / "README.md", "a", encoding="utf-8") as file:
            file.write(card(report) if file.tell() else card(report).lstrip())
        if job.outputs.report:
            publish(job.outputs.report, strict_json(report))
    return report


def _check(job: Job) -> None:
    """Raise InputError for whatever can be refused before any work."""
    check_recipe(job.recipe)
    if replace(job.outputs, report=None) != OutputOptions():
        raise InputError("where a folder is written, --report alone can be written beside it. Leave the others out.")
    if job.source.options != SourceOptions():
        raise InputError("a folder says itself what its model and its inputs are. Leave out --arch and --input.")
    check_target(job.target)
    check_output_paths(job.source.path, [place for place in (job.outputs.report,) if place])
