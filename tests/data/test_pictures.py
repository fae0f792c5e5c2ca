"""Pictures in folders: which part is read, and every file that is no picture has one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from slim_model.data.label_check import label_fault
from slim_model.data.open_data import open_data
from slim_model.data.pictures import Pictures
from slim_model.errors import InputError
from slim_model.graph.trace import trace

EXAMPLE = (torch.zeros(2, 3, 4, 4),)


def folders(root: Path, *names: str, count: int = 10) -> None:
    """Red pictures in ``root/NAME``: the first class darker than the second."""
    for shade, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (20, 30), (100 * shade + i, 0, 0)).save(root / name / f"{i}.png")


def labels(root: Path, split: str) -> list[int]:
    found = [batch.labels for batch in open_data(f"imagefolder:{root}", EXAMPLE, split=split).batches()]  # type: ignore[arg-type]
    return sorted(int(label) for some in found if some is not None for label in some)


@pytest.mark.parametrize("test", ["test", "val", "valid", "Validation", "TESTING"])
@pytest.mark.parametrize("train", ["train", "Train", "training"])
def test_the_usual_names_of_parts_are_known(train: str, test: str, tmp_path: Path) -> None:
    folders(tmp_path / train, "ants", "bees")
    folders(tmp_path / test, "ants", "bees", count=3)
    assert labels(tmp_path, "train") == [0] * 10 + [1] * 10
    assert labels(tmp_path, "test") == [0] * 3 + [1] * 3


def test_without_a_test_part_some_of_the_training_part_is_held_out(tmp_path: Path) -> None:
    """It was once the whole root, whose classes are then ``train`` and whatever lies beside it: 100 % for any net."""
    folders(tmp_path / "train", "ants", "bees")
    assert len(labels(tmp_path, "train")) == 16
    assert len(labels(tmp_path, "test")) == 4
    assert set(labels(tmp_path, "train")) == {0, 1}


def test_a_test_part_alone_is_refused(tmp_path: Path) -> None:
    folders(tmp_path / "val", "ants", "bees")
    with pytest.raises(InputError, match="has a part val and none to calibrate on"):
        labels(tmp_path, "test")


def test_both_parts_have_the_same_classes(tmp_path: Path) -> None:
    folders(tmp_path / "train", "ants", "bees")
    folders(tmp_path / "test", "ants", "wasps")
    with pytest.raises(InputError, match="have not the same classes: bees, wasps are in one of them alone"):
        labels(tmp_path, "test")


def test_labels_are_looked_at_without_reading_all_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(tmp_path, "ants", "bees", count=20)
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).eval(), EXAMPLE)
    data = open_data(f"imagefolder:{tmp_path}", EXAMPLE, batch=4)
    found = [batch.labels for batch in data.batches() if batch.labels is not None]
    assert data.known_labels is not None
    assert torch.equal(data.known_labels(), torch.cat(found))
    read: list[int] = []
    taken = Pictures.__getitem__
    monkeypatch.setattr(Pictures, "__getitem__", lambda self, i: read.append(i) or taken(self, i))
    assert label_fault(data, graph) is None
    assert len(read) == 4
    monkeypatch.setattr(Pictures, "labels_of", lambda _, rows: torch.arange(len(rows)))
    data = open_data(f"imagefolder:{tmp_path}", EXAMPLE, batch=4)
    assert label_fault(data, graph) == "there are labels from 0 to 31, and the model has 2 classes"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone.png"))


BROKEN: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "no picture": lambda path: path.write_text("<html>"),
    "a dangling link": dangling,
    "a bomb of pixels": lambda path: Image.new("1", (30_000, 30_000)).save(path),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_is_no_picture_is_named(fault: str, tmp_path: Path) -> None:
    folders(tmp_path, "ants", "bees", count=2)
    BROKEN[fault](tmp_path / "bees" / "1.png")
    with pytest.raises(InputError, match=r"bees/1\.png cannot be read as a picture .*Mend it, or take it out"):
        _ = labels(tmp_path, "train"), labels(tmp_path, "test")
