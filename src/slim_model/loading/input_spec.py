"""Inputs as the user types them: ``1x3x224x224:int64``."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

from slim_model.errors import InputError, first_line

Shape = tuple[int, ...]

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
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


def parse_input(spec: str) -> tuple[Shape, torch.dtype]:
    """Shape and dtype of ``1x3x224x224`` (float32) or ``1x16:int64``."""
    found = re.fullmatch(r"(\d+(?:x\d+)*)(?::(\w+))?", spec.strip().lower())
    if not found:
        raise InputError(f"--input {spec!r} is no shape: write sizes with x between them, such as 1x3x224x224")
    shape = tuple(int(size) for size in found[1].split("x"))
    if 0 in shape or math.prod(shape) > _LARGEST:
        raise InputError(f"--input {spec!r}: each size must be at least 1, and their product at most {_LARGEST}")
    if (dtype := found[2] or "float32") not in DTYPES:
        raise InputError(f"--input {spec!r}: unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    return shape, DTYPES[dtype]


def spec_of(shape: Iterable[int], dtype: torch.dtype) -> str:
    """As it is typed after ``--input``: ``1x3x224x224`` or ``1x16:int64``."""
    text = "x".join(str(size) for size in shape)
    return text if dtype == torch.float32 else f"{text}:{str(dtype).removeprefix('torch.')}"


def describe_error(error: BaseException) -> str:
    """Type, first line of the message, and the last line of the user's own code on the way, if any."""
    text = first_line(error, named=True)
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    return f"{text} (at {users[-1].filename}:{users[-1].lineno}: {users[-1].line})" if users else text
