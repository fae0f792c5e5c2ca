"""A whole run of the command: which file, what is done with it, what is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_model.export.options import OutputOptions
from slim_model.loading.source import Source, SourceOptions
from slim_model.options import files_of, group_of
from slim_model.recipe import GROUPS, Recipe


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of the command: ``target`` is OUT.onnx."""

    source: Source
    target: Path
    recipe: Recipe
    outputs: OutputOptions = OutputOptions()


def job_of(values: Mapping[str, Any], source: Path, target: Path, *, sha256: str | None = None) -> Job:
    """The job on ``source`` with these options, by name; others are left aside. ``sha256``: of the IN that a run had
    which is repeated. Raises InputError where a value is wrong, or options contradict each other."""
    known = Recipe().options()
    recipe = Recipe.of(**{name: value for name, value in values.items() if name in known})
    opened = Source(source, group_of(SourceOptions, values), sha256)
    return Job(opened, target, recipe, group_of(OutputOptions, values))


def files_read(job: Job) -> list[Path]:
    """What the options of ``job`` read beside IN: code, examples, data."""
    return [file for group in (job.source.options, *job.recipe.groups) for file in files_of(group)]


SECTIONS = {"source": SourceOptions, **GROUPS, "outputs": OutputOptions}
"""The sections of a recipe file: the option groups, under their names. Beside its options, ``source`` has ``path`` (IN)
and ``outputs`` has ``onnx`` (OUT.onnx); ``seed`` stands ahead of them."""
