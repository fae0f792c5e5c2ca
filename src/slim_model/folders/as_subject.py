"""A folder of transformers as a model with inputs, as a file is: for OUT.onnx, ``explain``, ``profile``, ``sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim_model.calling.arguments import Arguments
from slim_model.errors import InputError
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.running import inputs_of, load_folder
from slim_model.loading.load import Subject, load
from slim_model.loading.source import SourceOptions

_CACHING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of names of classes that predict words."""


def load_source(path: Path, options: SourceOptions, *, seed: int = 0) -> Subject:
    """The model in a file, or in a folder of transformers. Raises InputError where it cannot be used as given."""
    return _load_folder(path, options, seed) if path.is_dir() else load(path, options, seed=seed)


def _load_folder(path: Path, options: SourceOptions, seed: int) -> Subject:
    checkpoint = open_checkpoint_folder(path)
    if options != SourceOptions():
        raise InputError("a folder says itself what its model and its inputs are. Leave out --arch and --input.")
    model = load_folder(path, torch.float32).model
    half = checkpoint.dtype != torch.float32
    turned = (f"its weights were turned from {str(checkpoint.dtype).removeprefix('torch.')} into float32",)
    return Subject(
        model=model,
        arguments=_arguments_of(model, seed),
        source=str(path),
        sha256=checkpoint.sha256(),
        kind="folder of transformers",
        program=None,
        notes=turned if half else (),
    )


def _arguments_of(model: nn.Module, seed: int) -> Arguments:
    """Two samples; of words with a mask in which the second is shorter. A model that predicts words keeps no cache."""
    given: dict[str, Any] = inputs_of(model, seed)
    if (x := given.get("input_ids")) is not None:
        mask = torch.ones_like(x)
        mask[-1, -max(1, x.shape[1] // 4) :] = 0
        given["attention_mask"] = mask
    if hasattr(model.config, "use_cache") and type(model).__name__.endswith(_CACHING):
        given["use_cache"] = False
    return Arguments((), given)
