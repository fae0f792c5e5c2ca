"""What is trained on: samples of every source, parts that do not overlap, varied pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from finetuning import EXAMPLE, labelled
from slim_model import InputError
from slim_model.data.augmentation import augmentation_of, cut_mix
from slim_model.data.datasets import Divided, rows_of
from slim_model.data.training_samples import open_samples


def test_what_is_validated_on_is_not_trained_on() -> None:
    whole = TensorDataset(torch.arange(100.0)[:, None], torch.arange(100))
    held = open_samples(whole, (torch.zeros(2, 1),))
    train, validation = held.divided(seed=3)
    parts = [set(part.rows.tolist()) for part in (train, validation)]
    assert [len(part) for part in parts] == [72, 8]
    assert parts[0] | parts[1] | set(rows_of(whole, "test").tolist()) == set(range(100))
    assert parts[1] != set(held.divided(seed=4)[1].rows.tolist())
    assert torch.equal(held.divided(seed=3)[1].rows, validation.rows)
    assert len(open_samples(labelled(30_000), EXAMPLE).divided(0)[1]) == 2000
    with pytest.raises(InputError, match="has 8 samples to train on"):
        open_samples(TensorDataset(torch.zeros(10, 1)), (torch.zeros(2, 1),)).divided(0)


@pytest.mark.parametrize(
    "source",
    [
        Divided((torch.arange(40.0)[:, None], torch.arange(40))),
        [(torch.arange(40.0)[:, None][i : i + 7], torch.arange(40)[i : i + 7]) for i in range(0, 40, 7)],
        DataLoader(TensorDataset(torch.arange(40.0)[:, None], torch.arange(40)), batch_size=6),
    ],
    ids=["tensors", "batches", "loader"],
)
def test_samples_of_every_source(source: Any) -> None:
    held = open_samples(source, (torch.zeros(2, 1),), mean=(1.0,), std=(2.0,))
    assert (len(held), held.labelled) == (40, True)
    places = torch.tensor([5, 0, 17]), torch.tensor([1])
    for place, batch in zip(places, held.batches(places), strict=True):
        assert batch.labels is not None
        assert batch.labels.tolist() == place.tolist()
        assert torch.equal(batch.inputs[0].flatten(), (place - 1.0) / 2)
    moved = next(held.batches(places[:1], augment=lambda x: x + 2)).inputs[0]
    assert torch.equal(moved.flatten(), (places[0] + 2 - 1.0) / 2 if held.prepare.mean else (places[0] - 1.0) / 2 + 2)


def test_pictures_are_varied() -> None:
    """One white pixel: it is moved by up to an eighth, and in colour mirrored, in each picture otherwise."""
    vary = augmentation_of("auto", EXAMPLE)
    assert vary is not None
    picture = torch.zeros(3, 16, 16)
    picture[:, 5, 4] = 1
    places = {tuple(torch.nonzero(vary(picture)[0])[0].tolist()) for _ in range(300)}
    rows, columns = ({place[i] for place in places} for i in (0, 1))
    assert rows == set(range(3, 8))
    assert columns == set(range(2, 7)) | set(range(9, 14))
    assert augmentation_of("auto", (torch.zeros(2, 1, 16, 16),)) is None
    grey = augmentation_of("crop", (torch.zeros(2, 1, 16, 16),))
    assert grey is not None
    assert {int(torch.nonzero(grey(picture[:1]))[0, 2]) for _ in range(300)} == set(range(2, 7))
    assert augmentation_of("auto", (torch.zeros(2, 16),)) is None
    assert augmentation_of("none", EXAMPLE) is None
    with pytest.raises(InputError, match="augment 'flip' is for pictures"):
        augmentation_of("flip", (torch.zeros(2, 16),))


def test_boxes_of_other_pictures() -> None:
    """Each picture keeps a share of its own, drawn evenly, in a box; the rest is of one other."""
    torch.manual_seed(0)
    x = torch.arange(2000.0)[:, None, None, None].expand(-1, 3, 20, 20)
    mixed = cut_mix(x)
    kept = (mixed == x).float().mean((1, 2, 3))
    assert 0.55 < kept.mean() < 0.75  # half, and what of a box lies outside
    assert kept.min() < 0.15
    assert kept.max() > 0.99
    for picture, own in zip(mixed[:200, 0], x[:200, 0, 0, 0], strict=True):
        rows, columns = torch.nonzero(picture != own, as_tuple=True)
        if len(rows):
            box = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert len(box.unique()) == 1
