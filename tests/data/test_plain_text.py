"""``text:FILE``: bytes as tokens, and what it says where there is no tokenizer."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import torch

from slim_model.data.open_data import open_data
from slim_model.errors import InputError

EXAMPLE = (torch.zeros(1, 4, dtype=torch.long),)


def test_bytes_of_a_packed_text_are_tokens(tmp_path: Path) -> None:
    place = tmp_path / "text.xz"
    text = "".join(chr(number) for number in range(32, 32 + 41)) + "é"  # 43 bytes, ten times four and a rest
    place.write_bytes(lzma.compress(text.encode()))
    spec = f"text:{place},tokenizer=bytes"
    parts = [open_data(spec, EXAMPLE, split=split).batches() for split in ("train", "test")]
    rows = [row for part in parts for batch in part for row in batch.inputs[0].tolist()]
    assert sorted(rows) == [list(range(start, start + 4)) for start in range(32, 72, 4)]


@pytest.mark.parametrize(
    ("more", "example", "message"),
    [
        ("", EXAMPLE, "a tokenizer comes with a folder"),
        (",tokenizer=bytes", (torch.zeros(1, 4),), "a tokenizer comes with a folder"),
        (",tokenizer=a.b:c", EXAMPLE, "the model's own, or bytes"),
        (",tokens=3", EXAMPLE, "is no plain text"),
    ],
)
def test_what_cannot_be_tokens(more: str, example: tuple[torch.Tensor, ...], message: str, tmp_path: Path) -> None:
    place = tmp_path / "text.txt"
    place.write_text("abcdefgh")
    with pytest.raises(InputError, match=message):
        open_data(f"text:{place}{more}", example)
