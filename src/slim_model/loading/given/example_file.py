"""Example inputs from a file: arrays by name in .npz, or what ``torch.save`` wrote of tensors. Nothing in it runs."""

from __future__ import annotations

import inspect
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim_model.calling.arguments import Arguments, forward_parameters
from slim_model.calling.nesting import leaves_of
from slim_model.errors import InputError, first_line
from slim_model.loading.file_bytes import FileBytes, TooMuch, read_file
from slim_model.loading.given.place_inputs import bind, place, split_given
from slim_model.loading.pickles.machine import Damaged
from slim_model.loading.pickles.saved_file import read_saved

_HOW = (
    "Write numpy.savez(file, name=array, ...) by the parameters of forward, or torch.save of a tensor, a tuple of the "
    "arguments or a dict of them by name"
)
_ADVICE = "Name them in the file as forward does, such as {name}"
_PLAIN = (int, float, bool, "int", "float", "bool")


@dataclass(frozen=True, slots=True)
class HeldExample:
    """What a file of example inputs ``held``."""

    held: Any

    def bytes(self) -> int:
        return sum(leaf.value.nbytes for leaf in leaves_of(self.held) if hasattr(leaf.value, "nbytes"))


def read_example(path: Path) -> Any:
    """What a file of example inputs holds: a dict of arrays, or a tensor, tuple, list or dict. Raises InputError."""
    try:
        file = read_file(path)
        return _arrays(file) if path.suffix == ".npz" else _saved(file)
    except InputError as error:
        raise InputError(f"--example {path}: {error}") from error


def _arrays(file: FileBytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(file.content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        raise InputError(f"cannot be read as .npz ({first_line(error)}). {_HOW}.") from error
    if wrong := [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]:
        raise InputError(f"array '{wrong[0]}' is of type {arrays[wrong[0]].dtype}, which is no number.")
    return arrays


def _saved(file: FileBytes) -> Any:
    try:
        content = read_saved(file.content)
    except (Damaged, TooMuch, RecursionError) as error:
        raise InputError(f"cannot be read ({first_line(error)}). {_HOW}.") from error
    for leaf in leaves_of(content):
        if leaf.value is not None and not isinstance(leaf.value, Tensor | int | float | str):
            where = f" at {'.'.join(leaf.path)}" if leaf.path else ""
            raise InputError(f"holds a {type(leaf.value).__name__}{where}, which is no input. {_HOW}.")
    return content


def example_arguments(model: nn.Module, held: Any) -> Arguments:
    """What ``model`` is called with: ``held`` as ``read_example`` gave it. An array without axes is a number where
    forward says that the parameter is one."""
    parameters = forward_parameters(model)
    if isinstance(held, Mapping) and held and all(isinstance(x, np.ndarray) for x in held.values()):
        numbers = {p.name for p in parameters if p.annotation in _PLAIN}
        return place(model, [(_name(name, parameters), _value(x, name in numbers)) for name, x in held.items()])
    args, kwargs = split_given(parameters, held)
    return bind(parameters, args, kwargs, advice=_ADVICE)


def example_tensors(names: Sequence[str], held: Any) -> list[torch.Tensor]:
    """A tensor for each of ``names``, the inputs of a file: by name, else by place. ``held`` as ``read_example`` gave
    it. Raises InputError."""
    if isinstance(held, Mapping) and not any(name.startswith("arr_") for name in held):
        if held.keys() != set(names):
            raise InputError(f"--example gives {', '.join(map(str, held))}; the file's inputs are {', '.join(names)}.")
        values = [held[name] for name in names]
    else:
        every = held.values() if isinstance(held, Mapping) else held if isinstance(held, list | tuple) else [held]
        values = list(every)
    if len(values) != len(names):
        raise InputError(f"--example gives {len(values)} inputs; the file has {len(names)}: {', '.join(names)}.")
    return [x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x)) for x in values]


def _name(name: str, parameters: list[inspect.Parameter]) -> str:
    """'' for what numpy named itself, since it was given by place."""
    by_place = name.startswith("arr_") and name.removeprefix("arr_").isdigit()
    return "" if by_place and name not in {p.name for p in parameters} else name


def _value(array: np.ndarray, is_number: bool) -> Any:
    if array.ndim == 0 and is_number:
        return array.item()
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
