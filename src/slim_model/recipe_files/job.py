"""A whole run of the command: which file, what is done with it, what is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slim_model.export.options import OutputOptions
from slim_model.loading.source import Source, SourceOptions
from slim_model.recipe import GROUPS, Recipe


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of the command: ``target`` is OUT.onnx."""

    source: Source
    target: Path
    recipe: Recipe
    outputs: OutputOptions = OutputOptions()


SECTIONS = {"source": SourceOptions, **GROUPS, "outputs": OutputOptions}
"""The sections of a recipe file: the option groups, under their names. Beside its options, ``source`` has ``path`` (IN)
and ``outputs`` has ``onnx`` (OUT.onnx); ``seed`` stands ahead of them."""
