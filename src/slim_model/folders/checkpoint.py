"""A folder with config.json and safetensors -> what it holds, read without running any of it.

Only headers are read here: names, shapes and types. ``Checkpoint.read`` takes one tensor from its shard when a stage
asks for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slim_model.errors import InputError, first_line
from slim_model.folders.families import FAMILIES, Family

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_COUNTS = {"I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}  # positions and masks, which are copied
_LARGEST_JSON = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor: the shard it lies in, its shape and type."""

    shard: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(torch.Size(self.shape).numel())


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
        with safe_open(self.path / stored.shard, framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(self.names.get(name, name))
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
    places = _shards_by_name(path)
    tensors: dict[str, Stored] = {}
    for shard in dict.fromkeys(places.values()) if places else [WHOLE]:
        tensors |= _header(path, shard)
    # An index that names what no shard holds would be found out only after hours of work.
    if missing := [name for name in places if name not in tensors or tensors[name].shard != places[name]]:
        raise InputError(
            f"{path / places[missing[0]]} lacks {missing[0]}, which {INDEX} says it holds. Fetch the shard again."
        )
    return Checkpoint(path, config, family, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of someone else. Raises InputError where it is none."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise InputError(f"{path} is larger than {_LARGEST_JSON >> 20} MB, which no such file is.")
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({first_line(error)}). Fetch it again.") from error
    if not isinstance(held, dict):
        raise InputError(f"{path} holds a {type(held).__name__}, not names with values. Fetch it again.")
    return held


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


def _shards_by_name(path: Path) -> dict[str, str]:
    """Tensor -> shard by the index; nothing where one file holds all."""
    if (path / INDEX).is_file():
        held = read_json(path / INDEX).get("weight_map")
        if not isinstance(held, dict) or not held or not all(isinstance(shard, str) for shard in held.values()):
            raise InputError(f"{path / INDEX} has no weight_map from tensors to files. Fetch it again.")
        for shard in set(held.values()):
            # A name is no path: one that leads out of the folder could make any file of the machine part of the model.
            if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
                raise InputError(
                    f"{path / INDEX} names {shard!r}, which is no .safetensors file in the folder itself. Do not use "
                    "this folder, or mend the index."
                )
            if not (path / shard).is_file():
                raise InputError(f"{path}: the shard {shard} is missing, which {INDEX} names. Fetch it.")
        return held
    if (path / WHOLE).is_file():
        return {}
    if any(path.glob("*.bin")):
        raise InputError(
            f"{path} holds pickled weights (.bin) alone. Write them as safetensors: AutoModel.from_pretrained(folder)"
            ".save_pretrained(other), with the AutoModel class of its task."
        )
    raise InputError(f"{path} holds no {WHOLE} and no {INDEX}. Give the folder as save_pretrained() writes it.")


def _header(path: Path, shard: str) -> dict[str, Stored]:
    """What a shard holds."""
    held: dict[str, Stored] = {}
    try:
        with safe_open(path / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                part = file.get_slice(name)
                dtype = {**_DTYPES, **_COUNTS}.get(kind := part.get_dtype())
                if dtype is None:
                    raise InputError(
                        f"{path / shard}: {name} has the type {kind}: quantised weights have no channels that can be "
                        "taken out. Give the folder that they were made from."
                    )
                held[name] = Stored(shard, tuple(part.get_shape()), dtype)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path / shard} cannot be read ({first_line(error)}). Fetch it again.") from error
    if not any(stored.dtype.is_floating_point for stored in held.values()):
        raise InputError(f"{path / shard} holds no weights. Fetch it again.")
    return held
