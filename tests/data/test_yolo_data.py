"""Data sets in YOLO's form: the pictures of each part, without labels, boxed in grey as the library does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from drawn_boxes import draw_data_set
from slim_model.data.open_data import open_data
from slim_model.errors import InputError

pytest.importorskip("yaml")
EXAMPLE = (torch.zeros(1, 3, 8, 16),)


def test_each_part_has_its_own_pictures(tmp_path: Path) -> None:
    described = draw_data_set(tmp_path / "boxes", train=6, val=3, side=32)
    for split, count in (("train", 6), ("test", 3)):
        data = open_data(f"yolo:{described}", EXAMPLE, batch=4, split=split)  # type: ignore[arg-type]
        batches = list(data.batches())
        assert [batch.samples for batch in batches] == [4, 2][: len(batches)] if count == 6 else [3]
        assert not data.labelled
        assert all(batch.inputs[0].shape[1:] == (3, 8, 16) for batch in batches)


def test_a_picture_keeps_its_shape_in_grey(tmp_path: Path) -> None:
    """10 x 10 in 8 high and 16 wide: 8 columns in the middle, and 4 on either side are 114 of 255. Text files list
    pictures, too."""
    Image.new("RGB", (10, 10), (255, 0, 51)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nval: [list.txt]\n")
    (picture,) = next(iter(open_data(f"yolo:{tmp_path / 'data.yaml'}", EXAMPLE).batches())).inputs
    assert torch.allclose(picture[0, :, 4, 8], torch.tensor([1.0, 0.0, 0.2]))
    assert torch.allclose(picture[0, :, :, :4], torch.tensor(114 / 255))
    assert torch.allclose(picture[0, :, :, 12:], torch.tensor(114 / 255))
    assert not torch.allclose(picture[0, :, :, 4:12], torch.tensor(114 / 255))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: nowhere\n", "there is no .*nowhere"),
        ("val: list.txt\n", "names no train"),
        ("- a\n", "has no names"),
        ("train: [\n", "cannot be read as yaml"),
        ("train: .\n", "no pictures are at train"),
    ],
)
def test_what_is_wrong_with_the_yaml_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        open_data(f"yolo:{tmp_path / 'data.yaml'}", EXAMPLE)


def test_a_model_of_other_inputs_is_refused(tmp_path: Path) -> None:
    described = draw_data_set(tmp_path / "boxes", train=1, val=1, side=32)
    with pytest.raises(InputError, match="do not fit a model whose input is"):
        open_data(f"yolo:{described}", (torch.zeros(1, 1, 8, 8),))
