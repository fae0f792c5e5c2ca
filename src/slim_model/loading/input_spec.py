"""Inputs as the user types them: ``[name=]SHAPE[:dtype][=value]``, or ``[name=]int=16000``."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slim_model.errors import InputError, first_line, whole_statement

Shape = tuple[int, ...]

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float32",
        "float16",
        "bfloat16",
        "float64",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    )
}
_LARGEST = 2**28  # numbers in one example input
SCALAR = "scalar"
_TENSOR = re.compile(rf"({SCALAR}|\d+(?:x\d+)*)(?::(\w+))?")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_CONSTANTS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: _TRUTH[text.strip().lower()],
    "str": str,
}
_NOTHING = "none"
_HELP = (
    "write sizes with x between them, such as 1x3x224x224; name=1x16:int64 for the parameter called name; "
    "lengths=1:int64=64 for a value; sr=int=16000 for a number that is no tensor"
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """``values``: none are drawn at random; one is taken for all elements; else one for each."""

    shape: Shape
    dtype: torch.dtype
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ConstantSpec:
    """An argument that is no tensor."""

    value: int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class InputSpec:
    """``name``: the parameter of forward, with keys (``batch.image``, ``views.0``); '' where only its place counts."""

    name: str
    given: TensorSpec | ConstantSpec


def parse_input(spec: str) -> InputSpec:
    """What one ``--input`` says. InputError: what is wrong with it.

    >>> parse_input("lengths=1:int64=64")
    InputSpec(name='lengths', given=TensorSpec(shape=(1,), dtype=torch.int64, values=(64,)))
    """
    first, *rest = spec.strip().split("=")
    name = ""
    if not _is_kind(first) and rest:
        name, (first, *rest) = first.strip(), rest
    kind, value = first.strip().lower(), "=".join(rest)
    if kind == _NOTHING and not rest:
        return InputSpec(name, ConstantSpec(None))
    if kind in _CONSTANTS:
        return InputSpec(name, ConstantSpec(_constant(spec, kind, value)))
    return InputSpec(name, _tensor(spec, kind, value if rest else None))


def _is_kind(text: str) -> bool:
    text = text.strip().lower()
    return text in (*_CONSTANTS, _NOTHING) or _TENSOR.fullmatch(text) is not None


def _constant(spec: str, kind: str, value: str) -> Any:
    try:
        return _CONSTANTS[kind](value)
    except (ValueError, KeyError) as error:
        raise InputError(f"--input {spec!r}: {value!r} is no {kind}, as in {kind}={_EXAMPLES[kind]}") from error


_EXAMPLES = {"int": "16000", "float": "0.5", "bool": "true", "str": "mean"}


def _tensor(spec: str, kind: str, value: str | None) -> TensorSpec:
    match = _TENSOR.fullmatch(kind)
    if not match:
        raise InputError(f"--input {spec!r} is no shape: {_HELP}")
    shape = () if match[1] == SCALAR else tuple(int(size) for size in match[1].split("x"))
    count = math.prod(shape)
    if 0 in shape or count > _LARGEST:
        raise InputError(f"--input {spec!r}: each size must be at least 1, and their product at most {_LARGEST}")
    if (name := match[2] or "float32") not in DTYPES:
        raise InputError(f"--input {spec!r}: unknown dtype {name!r}; choose from {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    values = () if value is None else tuple(_number(spec, text, dtype) for text in value.split(","))
    if len(values) not in (0, 1, count):
        raise InputError(f"--input {spec!r}: {len(values)} values for {count} places; give one for all, or one each")
    return TensorSpec(shape, dtype, values)


def _number(spec: str, text: str, dtype: torch.dtype) -> float:
    try:
        if dtype is torch.bool:
            return _TRUTH[text.strip().lower()]
        if dtype.is_floating_point:
            return float(text)
        number, limits = int(text), torch.iinfo(dtype)
        if not limits.min <= number <= limits.max:
            raise ValueError(text)
    except (ValueError, KeyError) as error:
        raise InputError(f"--input {spec!r}: {text!r} is no value of {str(dtype).removeprefix('torch.')}") from error
    return number


def spec_of(shape: Iterable[int], dtype: torch.dtype, name: str = "") -> str:
    """As it is typed after ``--input``: ``1x3x224x224``, ``1x16:int64`` or ``tokens=1x16:int64``."""
    text = "x".join(str(size) for size in shape) or SCALAR
    text = text if dtype == torch.float32 else f"{text}:{str(dtype).removeprefix('torch.')}"
    return f"{name}={text}" if name else text


def describe_error(error: BaseException) -> str:
    """Type, first line of the message, and the last line of the user's own code on the way, if any."""
    text = first_line(error, named=True)
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    if not users:
        return text
    at = users[-1]
    return f"{text} (at {at.filename}:{at.lineno}: {whole_statement(at.filename, at.lineno or 0, at.line or '')})"
