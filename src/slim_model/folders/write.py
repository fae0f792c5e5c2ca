"""What stays of a checkpoint -> a folder, shard by shard."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from slim_model.atomic_write import reason
from slim_model.errors import InputError
from slim_model.folders.plan import Plan
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.reading.shards import INDEX, written_as
from slim_model.folders.widths.hidden import Hidden
from slim_model.folders.widths.sites import Site

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md")
"""Tokenizer, generation and preprocessor files; code and other forms of the weights are left."""
_OWN = ("config.json", INDEX)


@dataclass(frozen=True, slots=True)
class Kept:
    """Which units of each site, and which hidden channels stay, and tensors that have new values as well: weights of
    layers that read, refitted and cut where they read; biases and norms whole."""

    plan: Plan
    units: Mapping[Site | Hidden, Tensor]
    refitted: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """The tensor as it is written."""
        tensor = self._read_less(name)
        for part, units in self.units.items():
            for axis in (*part.makes, *part.holds):
                if axis.tensor == name:
                    tensor = tensor.index_select(axis.axis, axis.positions(units, part.units))
        return tensor.contiguous()

    def _read_less(self, name: str) -> Tensor:
        """The tensor, refitted, without what it does not read any more."""
        if name in self.refitted:
            return self.refitted[name]
        tensor = self.plan.checkpoint.read(name)
        for part, units in self.units.items():
            for axis in part.readings:
                if axis.tensor == name:
                    tensor = tensor.index_select(axis.axis, axis.positions(units, part.units))
        return tensor

    def masked(self) -> dict[str, Tensor]:
        """The dense checkpoint in which the layers that read are those written, with zeros for what is gone; whole
        layers that are gone as they were."""
        checkpoint = self.plan.checkpoint
        tensors = {name: self.refitted.get(name, checkpoint.read(name)) for name in checkpoint.tensors}
        for part, units in self.units.items():
            for axis in part.readings:
                zeros = torch.zeros(checkpoint.tensors[axis.tensor].shape, dtype=checkpoint.tensors[axis.tensor].dtype)
                positions = axis.positions(units, part.units)
                tensors[axis.tensor] = zeros.index_copy(axis.axis, positions, self._read_less(axis.tensor))
        if checkpoint.whole is None:
            return tensors
        named = {checkpoint.names[name]: tensor for name, tensor in tensors.items()}
        return named | {n: checkpoint.whole.read(n) for n in checkpoint.whole.tensors.keys() - named.keys()}


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` when the block ends well, else vanishes."""
    check_target(target)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write to {target.parent}: {reason(error)}. Give another place.") from error
    try:
        yield made
        check_target(target)  # it may have been filled meanwhile
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()
        os.chmod(made, 0o755)
        os.replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_target(target: Path) -> None:
    """Raise InputError where a folder cannot be written to ``target``, before any work."""
    if target.is_dir():
        if any(target.iterdir()):
            raise InputError(f"{target} is there already and is not empty. Give another name, or remove it.")
    elif target.exists() or target.is_symlink():
        raise InputError(f"{target} is no folder. Where IN is one, OUT is a folder that is not there yet, or OUT.onnx.")
    elif not target.parent.is_dir():
        raise InputError(f"cannot write {target}: the folder {target.parent} does not exist. Make it first.")


def write_folder(kept: Kept, place: Path) -> None:
    """Fill the empty folder ``place``: shards of the same names, config.json, and what goes with a model."""
    checkpoint = kept.plan.checkpoint
    _copy_others(checkpoint, place)
    try:
        for shard in checkpoint.shards:
            names = [name for name, stored in checkpoint.tensors.items() if stored.shard == shard]
            save_file({name: kept.read(name) for name in names}, place / written_as(shard), metadata={"format": "pt"})
        if len(checkpoint.shards) > 1 or (checkpoint.path / INDEX).is_file():
            _write_json(place / INDEX, _index(kept))
        _write_json(place / "config.json", dict(kept.plan.config))
    except OSError as error:
        raise InputError(f"cannot write {place}: {reason(error)}. Free space or give another place.") from error


def _copy_others(checkpoint: Checkpoint, place: Path) -> None:
    for pattern in _COPIED:
        for file in sorted(checkpoint.path.glob(pattern)):
            if file.is_file() and file.name not in _OWN and not file.name.endswith(".index.json"):
                shutil.copyfile(file, place / file.name)


def _index(kept: Kept) -> dict[str, Any]:
    checkpoint = kept.plan.checkpoint
    shapes = kept.plan.shapes
    sizes = (torch.Size(shapes[name]).numel() * stored.dtype.itemsize for name, stored in checkpoint.tensors.items())
    places = {name: written_as(stored.shard) for name, stored in checkpoint.tensors.items()}
    return {"metadata": {"total_size": sum(sizes)}, "weight_map": places}


def _write_json(place: Path, held: Any) -> None:
    place.write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
