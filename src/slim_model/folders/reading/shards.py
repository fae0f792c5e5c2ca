"""The files that hold a folder's weights: which there are, what each holds, one tensor of it.

safetensors are asked for their headers alone. Pickled weights (.bin) are read by torch with ``weights_only``, which
makes tensors and plain containers and calls nothing else; they are mapped, not copied, where the file is of torch 1.6
or later.
"""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slim_model.errors import InputError, first_line

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_PICKLED_INDEX, _PICKLED = "pytorch_model.bin.index.json", "pytorch_model.bin"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_COUNTS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "U8": torch.uint8,
}  # positions and masks, which are copied
_MASKS = ("attn.bias", "attention.bias")  # of bytes: which words GPT-2 and GPT-NeoX may see, which no class reads now
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


def stored_tensors(path: Path) -> dict[str, Stored]:
    """What the folder's files hold, by name. Raises InputError where a file is missing, damaged or not allowed."""
    index, whole = next(
        (
            (i, w)
            for i, w in ((INDEX, WHOLE), (_PICKLED_INDEX, _PICKLED))
            if (path / i).is_file() or (path / w).is_file()
        ),
        (INDEX, WHOLE),
    )
    places = _places(path, index) if (path / index).is_file() else {}
    if not places and not (path / whole).is_file():
        raise InputError(f"{path} holds no {WHOLE} and no {INDEX}. Give the folder as save_pretrained() writes it.")
    tensors: dict[str, Stored] = {}
    for shard in dict.fromkeys(places.values()) if places else [whole]:
        tensors |= _header(path, shard)
    # An index that names what no shard holds would be found out only after hours of work.
    if missing := [name for name in places if name not in tensors or tensors[name].shard != places[name]]:
        raise InputError(
            f"{path / places[missing[0]]} lacks {missing[0]}, which {index} says it holds. Fetch the shard again."
        )
    return tensors


def written_as(shard: str) -> str:
    """The name of a shard where it is written: as safetensors."""
    if not shard.endswith(".bin"):
        return shard
    return f"model{shard.removeprefix('pytorch_model').removesuffix('.bin')}.safetensors"


def are_pickled(path: Path) -> bool:
    """Whether the folder has its weights in .bin files alone."""
    return not any((path / name).is_file() for name in (INDEX, WHOLE))


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of the shard at ``path``."""
    if path.suffix == ".bin":
        return _unpickled(path)[name].clone()
    with safe_open(path, framework="pt") as shard:
        tensor: Tensor = shard.get_tensor(name)
    return tensor


def _places(path: Path, index: str) -> dict[str, str]:
    """Tensor -> shard by the index."""
    held = read_json(path / index).get("weight_map")
    if not isinstance(held, dict) or not held or not all(isinstance(shard, str) for shard in held.values()):
        raise InputError(f"{path / index} has no weight_map from tensors to files. Fetch it again.")
    form = ".safetensors" if index == INDEX else ".bin"
    for shard in set(held.values()):
        # A name is no path: one that leads out of the folder could make any file of the machine part of the model.
        if "/" in shard or "\\" in shard or not shard.endswith(form):
            raise InputError(
                f"{path / index} names {shard!r}, which is no {form} file in the folder itself. Do not use "
                "this folder, or mend the index."
            )
        if not (path / shard).is_file():
            raise InputError(f"{path}: the shard {shard} is missing, which {index} names. Fetch it.")
    return held


def _header(path: Path, shard: str) -> dict[str, Stored]:
    """What a shard holds."""
    read = _pickled_header if shard.endswith(".bin") else _safe_header
    held = read(path / shard)
    for name, (_, dtype, said) in held.items():
        if dtype is None or (dtype == torch.uint8 and not name.endswith(_MASKS)):
            raise InputError(
                f"{path / shard}: {name} has the type {said}: quantised weights have no channels that can be taken "
                "out. Give the folder that they were made from."
            )
    found = {name: Stored(shard, shape, dtype) for name, (shape, dtype, _) in held.items() if dtype}
    if not any(stored.dtype.is_floating_point for stored in found.values()):
        raise InputError(f"{path / shard} holds no weights. Fetch it again.")
    return found


_Header = Mapping[str, tuple[tuple[int, ...], torch.dtype | None, str]]
"""Shape, type where it is one of weights, and the type's name."""


def _safe_header(path: Path) -> _Header:
    known = {**_DTYPES, **_COUNTS}
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            return {n: (tuple(p.get_shape()), known.get(p.get_dtype()), p.get_dtype()) for n, p in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}). Fetch it again.") from error


def _pickled_header(path: Path) -> _Header:
    known = {*_DTYPES.values(), *_COUNTS.values()}
    return {
        name: (tuple(x.shape), x.dtype if x.dtype in known else None, str(x.dtype).removeprefix("torch."))
        for name, x in _unpickled(path).items()
    }


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file."""
    found = path.stat()
    return _read_pickle(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read_pickle(path: Path, size: int, mtime_ns: int) -> dict[str, Tensor]:
    """One file at a time, anew where it has changed."""
    with open(path, "rb") as file:
        is_archive = file.read(2) == b"PK"
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive or None)
    except (pickle.UnpicklingError, RuntimeError, OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as pickled weights without running what is in it ({first_line(error)}). Fetch it "
            "again, or the folder's safetensors."
        ) from error
    if not isinstance(held, dict) or not all(isinstance(x, Tensor) and not x.is_sparse for x in held.values()):
        raise InputError(f"{path} holds no names with tensors. Give the folder as save_pretrained() writes it.")
    return held
