"""What is wrong with samples or labels is said at the door, and where labels are not needed they are left aside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slim_model import InputError, Recipe, slim
from slim_model.data.open_data import open_data
from small_nets import Residual, images, trained

EXAMPLE = (torch.zeros(2, 3, 4, 4),)


def spoilt(value: float, at: int) -> Tensor:
    x = torch.zeros(30, 3, 4, 4)
    x[at, 1, 2, 3] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("batch", [4, 64])
def test_a_sample_that_is_not_finite_is_named_by_its_number(value: float, batch: int) -> None:
    """In whatever order samples are drawn, and in a stream."""
    drawn = [int(batch.inputs[0][0, 0, 0, 0]) for batch in open_data(_numbered(), EXAMPLE, batch=1).batches()]
    at = drawn[6]  # none of those that are held out
    for source in (spoilt(value, at), [*spoilt(value, at).split(7)]):
        with pytest.raises(InputError, match=rf"sample {at} \(from 0\) holds NaN or infinity"):
            list(open_data(source, EXAMPLE, batch=batch, samples=100).batches())


def _numbered() -> Tensor:
    return torch.arange(30.0).view(30, 1, 1, 1).expand(30, 3, 4, 4)


def test_nothing_is_recovered_from_nan() -> None:
    """Recovery once did nothing then, bit for bit, and said nothing."""
    x = images(40)
    x[:] = float("nan")
    with pytest.raises(InputError, match="holds NaN or infinity"):
        slim(trained(Residual()), images(2), data=x)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"std": (float("inf"),)}, "std inf: give finite numbers above 0"),
        ({"std": (0.0,)}, r"std 0\.0: give finite numbers above 0"),
        ({"std": (-1.0,)}, "give finite numbers above 0"),
        ({"mean": (float("nan"),)}, "mean nan: give finite numbers"),
        ({"samples": 0}, "must be at least 1"),
    ],
)
def test_options_that_spoil_all_samples_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Recipe.of(data="npz:x.npz", **options)


LABELS = {
    "halves": (torch.arange(40) % 5 + 0.5, r"a label is \d\.5, which is no class number"),
    "several a sample": (torch.zeros(40, 3).long(), r"there are labels of shape \(3,\) a sample"),
    "too high": (torch.arange(40), "there are labels from .* to .*, and the model has 5 classes"),
    "below zero": (-torch.ones(40).long(), "there are labels from -1 to -1"),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("use", [{"criterion": "taylor"}, {"criterion": "lda"}, {"finetune": 1}, {"max_drop": 0.1}])
def test_labels_that_are_no_classes_are_refused_where_they_are_needed(name: str, use: dict[str, Any]) -> None:
    labels, says = LABELS[name]
    with pytest.raises(InputError, match=says):
        slim(trained(Residual()), images(2), data=(images(40), labels), **use)


@pytest.mark.parametrize("name", LABELS)
def test_where_they_are_not_needed_a_note_says_so(name: str) -> None:
    labels, says = LABELS[name]
    report = slim(trained(Residual()), images(2), data=(images(40), labels), recover="bias").report
    (note,) = [note for note in report.warnings if "labels were left aside" in note]
    assert re.search(says, note)


@pytest.mark.parametrize(
    "labels", [["a"] * 5, torch.zeros(5, dtype=torch.complex64), torch.tensor([0, 1, float("nan"), 0, 1])]
)
def test_labels_that_are_no_numbers_are_refused(labels: Any) -> None:
    with pytest.raises(InputError, match=r"gave labels that are (no numbers|complex, NaN or infinite)"):
        next(open_data([{"x": torch.zeros(5, 3, 4, 4), "label": labels}], EXAMPLE).batches())


def test_complex_samples_are_refused() -> None:
    with pytest.raises(InputError, match="gave complex numbers; the model takes float32"):
        next(open_data(torch.zeros(5, 3, 4, 4, dtype=torch.complex64), EXAMPLE).batches())


@pytest.mark.parametrize("content", ["cut", "empty", "strings", "objects", "text"])
def test_a_file_that_is_no_npz_has_one_message(content: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((5, 3, 4, 4)), y=np.array(["a"] * 5 if content == "strings" else [0] * 5))
    if content == "cut":
        path.write_bytes(path.read_bytes()[:200])
    if content == "empty":
        path.write_bytes(b"")
    if content == "text":
        path.write_text("hello")
    if content == "objects":
        np.savez(path, x=np.array([None, 1], dtype=object))
    with pytest.raises(InputError, match=r"data\.npz"):
        open_data(f"npz:{path}", EXAMPLE)


def test_a_single_array_is_the_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((10, 3, 4, 4), "float32"))
    assert open_data(f"npz:{tmp_path / 'x.npy'}", EXAMPLE).samples == 8


class OfTwoSizes(nn.Module):
    """Takes inputs that do not hold as many samples, as queries and what is looked through."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(torch.relu(self.a(x))), self.out(torch.relu(self.b(y)))


def test_inputs_of_different_first_axes_have_no_samples() -> None:
    """Weights rank there, and a scan compares the outputs that have a row for each sample of the first input."""
    model, inputs = trained(OfTwoSizes()), (torch.randn(4, 6), torch.randn(2, 6))
    options = {"multiple_of": 1, "data": [(torch.randn(4, 6), torch.randn(2, 6))] * 6}
    with pytest.raises(InputError, match=r"first axes of the inputs differ in size.* Use a criterion of weights"):
        slim(model, inputs, criterion="variance", **options)
    assert slim(model, inputs, criterion="l1", allocate="sensitivity", target="macs=150", **options).report.sensitivity
