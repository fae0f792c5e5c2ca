"""``--data text:FILE`` -> sequences of tokens for a folder's model, a part of them held out; other data -> pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.data.open_data import open_data
from slim_model.data.options import DataOptions
from slim_model.data.plain_text import TextSpec, by_bytes, read_text
from slim_model.errors import InputError, first_line
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.reading.shards import read_json
from slim_model.folders.running import library

SAMPLES = 128
"""Sequences that are taken where no number is asked for."""
_LENGTH = 256
_HELD_OUT = 8  # one sequence in so many
_CHARACTERS = 12  # for each token, at most


@dataclass(frozen=True, slots=True)
class Tokens:
    """``fit`` and ``held_out``: ``(sequence, position)``, of one text; what is held out stands behind the rest."""

    name: str
    fit: Tensor
    held_out: Tensor


def read_tokens(checkpoint: Checkpoint, options: DataOptions, longest: int) -> Tokens:
    """The first sequences of the text, by the tokenizer of the folder. Raises InputError where the text is too short,
    the folder has no tokenizer, or a token is none of the model's."""
    spec = TextSpec.of(options.data)
    length = min(spec.length or _LENGTH, longest)
    wanted = options.samples or SAMPLES
    held_out = max(1, wanted // _HELD_OUT)
    needed = (wanted + held_out) * length
    text = read_text(spec, at_most=needed * _CHARACTERS)
    numbers = by_bytes(text) if spec.tokenizer == "bytes" else _by_own_tokenizer(checkpoint, text)
    rows = numbers[: len(numbers) // length * length][:needed].view(-1, length)
    if len(rows) < 2:
        raise InputError(
            f"--data {options.data}: its {len(numbers)} tokens are less than two sequences of {length}. Give a longer "
            "text, or text:FILE,length=N."
        )
    words = checkpoint.config.get("vocab_size")
    if isinstance(words, int) and int(rows.max()) >= words:
        raise InputError(f"--data {options.data}: token {int(rows.max())} is none of the model's {words}.")
    last = min(held_out, len(rows) - 1)
    return Tokens(options.data, rows[:-last], rows[-last:])


def read_pictures(checkpoint: Checkpoint, options: DataOptions, like: Tensor, seed: int) -> Tokens:
    """As many pictures as are asked for, of the size of ``like``, none held out; normalised as the folder says where
    ``options`` do not. Raises InputError where the data has none."""
    said = checkpoint.path / "preprocessor_config.json"
    own = read_json(said) if said.is_file() and not (options.mean or options.std) else {}
    mean, std = (own.get(f"image_{name}") or getattr(options, name) for name in ("mean", "std"))
    data = open_data(options.data, (like,), samples=options.samples or SAMPLES, mean=mean, std=std, seed=seed)
    pictures = torch.cat([batch.inputs[0] for batch in data.batches()])
    return Tokens(str(options.data), pictures, pictures[:0])


def _by_own_tokenizer(checkpoint: Checkpoint, text: str) -> Tensor:
    try:
        tokenizer = library().AutoTokenizer.from_pretrained(
            checkpoint.path, trust_remote_code=False, local_files_only=True
        )
        numbers = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
        # Of a folder without vocabulary transformers makes a tokenizer to which all words are one.
        if len(numbers) > 1 and bool((numbers == numbers[0]).all()):
            raise ValueError("all words of the text are one token to it")
        return numbers
    except Exception as error:  # of a library, on files of other people: it fails in many ways
        raise InputError(
            f"the tokenizer of {checkpoint.path} cannot be used ({first_line(error, named=True)}). Put its files into "
            "the folder; for a model of bytes add ,tokenizer=bytes to --data text:FILE."
        ) from error
