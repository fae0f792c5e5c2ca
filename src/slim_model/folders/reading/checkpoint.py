"""A folder with config.json and weights -> what it holds, read without running any of it.

Only headers are read here: names, shapes and types. ``Checkpoint.read`` takes one tensor from its shard when a stage
asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.folders.reading.families import FAMILIES, Family
from slim_model.folders.reading.shards import Stored, read_json, read_tensor, stored_tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``tensors`` by their names in the files, in the order of these; ``config`` as it stands in config.json.

    Of one that lost layers: ``whole`` is what it was made from, ``gone`` the layers, ``names`` what its tensors are
    called in the files."""

    path: Path
    config: Mapping[str, Any]
    family: Family
    tensors: Mapping[str, Stored]
    names: Mapping[str, str] = field(default_factory=dict)
    whole: Checkpoint | None = None
    gone: tuple[int, ...] = ()

    def read(self, name: str) -> Tensor:
        """The tensor, in its own type. Raises InputError where it holds NaN or infinity."""
        stored = self.tensors[name]
        tensor = read_tensor(self.path / stored.shard, self.names.get(name, name))
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{self.path / stored.shard}: {name} holds NaN or infinity. The training may have diverged: give an "
                "earlier checkpoint."
            )
        return tensor

    @property
    def shards(self) -> list[str]:
        """Names of the files, each once."""
        return list(dict.fromkeys(stored.shard for stored in self.tensors.values()))

    @property
    def parameters(self) -> int:
        """How many numbers all tensors have."""
        return sum(stored.size for stored in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The type that most of its numbers have."""
        counted: dict[torch.dtype, int] = {}
        for stored in self.tensors.values():
            if stored.dtype.is_floating_point:
                counted[stored.dtype] = counted.get(stored.dtype, 0) + stored.size
        return max(counted, key=lambda dtype: counted[dtype])

    def sha256(self) -> str:
        """Of config.json and of the shards' bytes, in their order."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for shard in self.shards:
            with open(self.path / shard, "rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()


def open_checkpoint_folder(path: Path) -> Checkpoint:
    """The checkpoint in the folder ``path``. Raises InputError, which says what is missing or not allowed."""
    config = _read_config(path)
    family = family_of(path, config)
    return Checkpoint(path, config, family, stored_tensors(path))


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise InputError(
                f"{path} holds an adapter without its model. Merge them first: peft's merge_and_unload(), then "
                "save_pretrained()."
            )
        raise InputError(
            f"{path} is a folder without config.json. Give the model file in it, or the folder of a transformers model "
            "as save_pretrained() writes it."
        )
    return read_json(path / "config.json")


def family_of(path: Path, config: Mapping[str, Any]) -> Family:
    """The row of its kind of model; InputError where there is none, or the weights are quantised."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise InputError(
            f"{path} holds {method or 'quantised'} weights, of which no channel can be taken out. Give the folder that "
            "they were made from, and quantise the smaller model."
        )
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    if "auto_map" in config:
        raise InputError(
            f"{path} needs code of its own (auto_map in config.json), which slim-model does not run. If transformers "
            "has the model by now, load it with trust_remote_code=False, save_pretrained() it and give that folder."
        )
    known = ", ".join(FAMILIES)
    raise InputError(
        f"{path}: model_type {kind!r} is not among those whose folders can be written: {known}. Give the model as a "
        ".pt2 file instead: torch.export.save(torch.export.export(model, inputs), 'model.pt2')."
    )
