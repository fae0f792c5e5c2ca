"""``--data text:FILE``: a text as it is, whose tokens are the samples."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from slim_model.data.datasets import Split
from slim_model.errors import InputError, first_line

_FORM = "text:FILE[,length=TOKENS][,tokenizer=bytes]"


@dataclass(frozen=True, slots=True)
class TextSpec:
    """``length``: tokens of a sequence, 0 where it is left open. ``tokenizer``: empty for the model's own, or
    ``bytes``, those of the text in UTF-8."""

    spec: str
    file: Path
    length: int = 0
    tokenizer: str = ""

    @classmethod
    def of(cls, spec: str) -> Self:
        """What ``spec`` says. Raises InputError where it is not of the form."""
        kind, _, rest = str(spec).partition(":")
        file, *parts = rest.split(",")
        options = dict(part.partition("=")[::2] for part in parts)
        if kind != "text" or not file or set(options) - {"length", "tokenizer"}:
            raise InputError(f"--data {spec!r} is no plain text; write {_FORM}.")
        length = options.get("length", "0")
        if not length.isdecimal() or ("length" in options and int(length) < 2):
            raise InputError(f"--data {spec!r}: length={length} is no number of tokens from 2. Write {_FORM}.")
        if options.get("tokenizer", "bytes") != "bytes":
            raise InputError(f"--data {spec!r}: the tokenizer is the model's own, or bytes. Write {_FORM}.")
        if not Path(file).is_file():
            raise InputError(f"--data {spec!r}: there is no file {file}.")
        return cls(spec, Path(file), int(length), options.get("tokenizer", ""))


def read_text(spec: TextSpec, at_most: int = -1) -> str:
    """The first ``at_most`` characters of the file, -1 for all, which may be packed (.gz, .xz)."""
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    opened: Any = openers.get(spec.file.suffix, open)
    try:
        with opened(spec.file, "rt", encoding="utf-8", newline="") as file:
            text: str = file.read(at_most)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise InputError(f"--data {spec.spec!r}: it cannot be read as UTF-8 text ({first_line(error)}).") from error
    return text


def by_bytes(text: str) -> Tensor:
    """The bytes of the text in UTF-8, as numbers."""
    return torch.from_numpy(np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64))


def text(spec: str, place: str, example: Sequence[Any], split: Split) -> Tensor:
    """``(sequence, position)`` of bytes, as long as the model's example."""
    read = TextSpec.of(spec)
    shape = example[0].shape if example and isinstance(example[0], Tensor) else ()
    if read.tokenizer != "bytes" or len(shape) != 2 or example[0].is_floating_point():
        raise InputError(
            f"--data {spec!r}: a tokenizer comes with a folder of transformers alone. For a model of bytes, which "
            "takes tokens of shape (batch, length), add ,tokenizer=bytes; else give "
            "csv:FILE,tokenizer=package.module:callable."
        )
    length = read.length or shape[1]
    tokens = by_bytes(read_text(read))
    return tokens[: len(tokens) // length * length].view(-1, length)
