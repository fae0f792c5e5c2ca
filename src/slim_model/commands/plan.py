"""``slim-model plan``: what a folder, or a config.json alone, would lose; no weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slim_model.errors import InputError
from slim_model.folders.meta import plan_of_config
from slim_model.folders.plan import Plan, plan_folder
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.reading.shards import read_json
from slim_model.folders.widths.sites import where

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def plan_without_weights(source: Path, ratio: float, step: int | None = None, *, residual: bool = False) -> Plan:
    """The plan of the folder ``source`` by the headers of its weights; where it has none, or ``source`` is a
    config.json, by that alone. Raises SlimError where there can be no plan."""
    config = source / "config.json" if source.is_dir() else source
    if source.is_dir() and any(file for form in _WEIGHTS for file in source.glob(form)):
        return plan_folder(open_checkpoint_folder(source), ratio, step, residual=residual)
    if not config.is_file():
        raise InputError(f"there is no {config}. Give the folder of a transformers model, or its config.json.")
    return plan_of_config(read_json(config), ratio, step, residual=residual)


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people, a fact a line."""
    dense, slim = plan.checkpoint.parameters, plan.parameters
    return [
        f"parameters: {dense:,} -> {slim:,} ({1 - slim / dense:.1%} fewer)",
        *(f"{where(name)}: {units:,} -> {kept:,}" for name, (kept, units) in plan.kept.items()),
        "config.json would say: " + ", ".join(f"{key}={value}" for key, value in _changed(plan).items()),
        *plan.notes,
    ]


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan for machines."""
    return {
        "dense": {"params": plan.checkpoint.parameters},
        "slim": {"params": plan.parameters},
        "widths": {name: {"kept": kept, "of": units} for name, (kept, units) in plan.kept.items()},
        "config": _changed(plan),
        "notes": list(plan.notes),
    }


def _changed(plan: Plan) -> dict[str, Any]:
    """What the configuration would say otherwise."""
    return {key: value for key, value in plan.config.items() if plan.checkpoint.config.get(key) != value}
