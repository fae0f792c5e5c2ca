"""A configuration without weights -> the plan: what a model would lose, before anyone has fetched it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slim_model.errors import InputError, first_line
from slim_model.folders.plan import Plan, check_widths, plan_folder
from slim_model.folders.reading.checkpoint import Checkpoint, family_of
from slim_model.folders.reading.shards import Stored
from slim_model.folders.running import class_of, library


def plan_of_config(config: Mapping[str, Any], ratio: float, step: int | None = None, *, residual: bool = False) -> Plan:
    """The plan for a config.json as it stands, of a model whose tensors are on the meta device: they have shapes and no
    values. The configuration must name its class, and the class must call its tensors as its files do (all kinds of
    ``FAMILIES`` but ViT and DeiT). Raises InputError where transformers refuses it."""
    path = Path("the configuration")
    family = family_of(path, config)
    check_widths(path, config, family)
    if any(cut.module for cut in family.cuts):
        raise InputError(
            f"the class of a {config['model_type']} calls its tensors otherwise than its files: the plan needs the "
            "folder with its weights. Give that."
        )
    transformers = library()
    try:
        said = transformers.AutoConfig.for_model(**config)
        with torch.device("meta"):
            model = class_of(transformers, said)(said)
    except Exception as error:  # of a library, on what other people wrote: it fails in many ways
        raise InputError(f"transformers cannot build this configuration: {first_line(error, named=True)}.") from error
    dtype = getattr(said, "dtype", None) or torch.float32
    tensors = {name: Stored("", tuple(x.shape), dtype) for name, x in _once(model).items()}
    return plan_folder(Checkpoint(path, said.to_dict(), family, tensors), ratio, step, residual=residual)


def _once(model: Any) -> dict[str, Any]:
    """The tensors of a file: one that has several names under the first."""
    seen: dict[int, str] = {}
    named = model.state_dict(keep_vars=True)
    return {name: x for name, x in named.items() if seen.setdefault(id(x), name) == name}
