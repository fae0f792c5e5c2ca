"""What may be given as data: specs, tensors, data sets, loaders, generators; and what is refused, in which words."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from slim_model import InputError
from slim_model.data.batches import Data
from slim_model.data.open_data import open_data
from slim_model.data.options import SOURCES as KINDS
from slim_model.recipe import Recipe

EXAMPLE = (torch.zeros(2, 3, 4, 4),)


def pictures(count: int) -> tuple[Tensor, Tensor]:
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone(), torch.arange(count)


def order_of(data: Data) -> list[int]:
    """The numbers of the samples, in the order of a pass."""
    return [int(v) for batch in data.batches() for v in batch.inputs[0].flatten(1)[:, 0]]


# -- in Python ------------------------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.x, self.y = pictures(count)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


SOURCES = {
    "tensors": lambda: pictures(40),
    "data set": lambda: Pairs(40),
    "tensor data set": lambda: TensorDataset(*pictures(40)),
    "loader": lambda: DataLoader(Pairs(40), batch_size=9),
    "list of batches": lambda: list(zip(*(t.split(7) for t in pictures(40)), strict=True)),
    "generator": lambda: ((x, y) for x, y in zip(*(t.split(7) for t in pictures(40)), strict=True)),
    "dicts": lambda: [{"pixels": x, "labels": y} for x, y in zip(*(t.split(7) for t in pictures(40)), strict=True)],
    "callable": lambda: lambda: pictures(40),
    "arrays": lambda: [tuple(t.numpy() for t in pictures(40))],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_python_sources_give_inputs_and_labels(kind: str) -> None:
    data = open_data(SOURCES[kind](), EXAMPLE, samples=20, batch=8)
    assert data.labelled
    for _ in range(2):  # a second pass is the same
        batches = list(data.batches())
        assert sum(b.samples for b in batches) == 20
        assert all(b.samples <= 8 and len(b.inputs[0]) == b.samples for b in batches)
        for batch in batches:
            assert batch.labels is not None
            assert torch.equal(batch.inputs[0][:, 0, 0, 0].long(), batch.labels)


def test_labels_are_what_stands_behind_the_inputs() -> None:
    one, two = torch.zeros(3, 2), torch.zeros(3, 5)
    assert not open_data([one], (one,)).labelled
    assert not open_data([(one, two)], (one, two)).labelled
    assert open_data([(one, two, torch.zeros(3))], (one, two)).labelled
    assert open_data([((one, two), torch.zeros(3))], (one, two)).labelled


def test_one_sample_in_five_is_held_out_whatever_the_seed() -> None:
    taken = [set(order_of(open_data(pictures(50), EXAMPLE, seed=seed))) for seed in range(3)]
    held = set(order_of(open_data(pictures(50), EXAMPLE, split="test")))
    assert len(held) == 10
    assert all(part == set(range(50)) - held for part in taken)


def test_the_seed_says_which_samples_and_in_which_order() -> None:
    first, again, other = (order_of(open_data(pictures(50), EXAMPLE, samples=12, seed=s)) for s in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 12


def test_values_take_the_type_and_norm_of_the_model() -> None:
    byte = torch.full((10, 3, 4, 4), 255, dtype=torch.uint8)
    batch = next(open_data(byte, EXAMPLE, mean=(0.5, 0.25, 0), std=(0.5,)).batches())
    assert batch.inputs[0].dtype == torch.float32
    assert batch.inputs[0][0, :, 0, 0].tolist() == [1, 1.5, 2]
    tokens = next(open_data([torch.ones(2, 7).int()], (torch.zeros(2, 7).long(),)).batches())
    assert tokens.inputs[0].dtype == torch.int64


def test_a_fixed_batch_is_that_of_the_example() -> None:
    data = open_data(pictures(25), EXAMPLE, batch=64, fixed_batch=True)
    assert {b.samples for b in data.batches()} == {2}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (torch.zeros(5, 3, 8, 8), {}, r"gave samples of 3x8x8; the model's input is 3x4x4 each.*--input"),
        ([(torch.zeros(2, 3, 4, 4),) * 4], {}, "gave batches of 4 values; the model has 1 inputs"),
        ((torch.zeros(5, 3, 4, 4), torch.zeros(4)), {}, r"have \[5, 4\] samples"),
        ([(torch.zeros(5, 3, 4, 4), torch.zeros(4))], {}, r"gave \(4,\) labels for 5 samples"),
        ([], {}, "is empty"),
        (torch.zeros(5, 3, 4, 4), {"samples": 0}, "must be at least 1"),
        (torch.zeros(5, 3, 4, 4), {"mean": (1, 2)}, "one number, or one for each channel"),
        (torch.zeros(5, 3, 4, 4), {"std": (0,)}, "no std of 0"),
        ("nowhere", {}, "names no data. Write fashion-mnist:DIR"),
        ("mnist:/no/such/place", {}, "there is no /no/such/place"),
        ("no.such.module:thing", {}, "No module named 'no'"),
        ("math:pi", {}, "math:pi is a float, not a callable"),
        ("math:pie", {}, "has no attribute 'pie'"),
    ],
)
def test_what_does_not_fit_is_explained(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(open_data(source, EXAMPLE, **options).batches())


def test_integers_cannot_be_normalised() -> None:
    with pytest.raises(InputError, match="do not apply"):
        open_data([torch.zeros(2, 7).long()], (torch.zeros(2, 7).long(),), mean=(0.5,))


# -- specs ----------------------------------------------------------------------------------------------------------


def idx(path: Path, values: np.ndarray, *, packed: bool) -> None:
    raw = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.with_name(path.name + ".gz") if packed else path).write_bytes(gzip.compress(raw) if packed else raw)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("kind", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, kind: str, name: str, packed: bool) -> None:
    for part, count in (("train", 30), ("t10k", 10)):
        images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 28, 28))
        idx(tmp_path / name / "raw" / f"{part}-images-idx3-ubyte", np.ascontiguousarray(images), packed=packed)
        idx(tmp_path / name / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10, packed=packed)
    tmp_path.chmod(0o500)  # nothing may be unpacked there
    try:
        example = (torch.zeros(2, 1, 28, 28),)
        data = open_data(f"{kind}:{tmp_path}", example)
        assert data.labelled
        assert data.samples == 30  # it has a test split of its own: no training sample is held out
        batch = next(data.batches())
        assert batch.labels is not None
        assert torch.equal((batch.inputs[0][:, 0, 0, 0] * 255).round().long() % 10, batch.labels)
        assert open_data(f"{kind}:{tmp_path}", example, split="test").samples == 10
        wide = next(open_data(f"{kind}:{tmp_path}", (torch.zeros(2, 3, 32, 32),)).batches())
        assert wide.inputs[0].shape[1:] == (3, 32, 32)
        flat = next(open_data(f"{kind}:{tmp_path}", (torch.zeros(2, 784),)).batches())
        assert flat.inputs[0].shape[1:] == (784,)
    finally:
        tmp_path.chmod(0o700)


def test_cifar10_is_read_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="must hold cifar-10-batches-py"):
        open_data(f"cifar10:{tmp_path}", (torch.zeros(2, 3, 32, 32),))

    class Ten:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert not download
            count = 20 if train else 5
            self.data, self.targets = np.zeros((count, 32, 32, 3), np.uint8), list(range(count))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Ten)
    assert open_data(f"cifar10:{tmp_path}", (torch.zeros(2, 3, 32, 32),)).samples == 20


def folders(root: Path, names: list[str], *, count: int = 5) -> None:
    for shade, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (20, 30), (100 * shade + i, 0, 0)).save(root / name / f"{i}.png")


def test_folders_of_pictures_are_classes(tmp_path: Path) -> None:
    folders(tmp_path, ["ants", "bees"])
    data = open_data(f"imagefolder:{tmp_path}", EXAMPLE)
    assert data.samples == 8  # of 10, two are held out
    batch = next(data.batches())
    assert batch.labels is not None
    assert torch.equal(batch.inputs[0][:, 0, 0, 0] * 255 > 50, batch.labels == 1)


def test_a_train_folder_is_used_and_nothing_held_out(tmp_path: Path) -> None:
    folders(tmp_path / "train", ["ants", "bees"])
    folders(tmp_path / "val", ["ants", "bees"], count=3)
    assert open_data(f"imagefolder:{tmp_path}", EXAMPLE).samples == 10
    assert open_data(f"imagefolder:{tmp_path}", EXAMPLE, split="test").samples == 6


def test_pictures_without_folders_have_no_labels(tmp_path: Path) -> None:
    folders(tmp_path, ["."], count=10)
    data = open_data(f"imagefolder:{tmp_path}", (torch.zeros(1, 1, 4, 6),))
    assert not data.labelled
    assert next(data.batches()).inputs[0].shape == (8, 1, 4, 6)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError):
        open_data(f"imagefolder:{tmp_path / 'none'}", EXAMPLE)


def test_npz_files(tmp_path: Path) -> None:
    x, y = (t.numpy() for t in pictures(10))
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    np.savez(tmp_path / "c.npz", other=x)
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object))
    assert open_data(f"npz:{tmp_path}/a.npz", EXAMPLE).samples == 8
    assert open_data(f"npz:{tmp_path}/b.npz", EXAMPLE).samples == 10
    assert order_of(open_data(f"npz:{tmp_path}/b.npz", EXAMPLE, split="test", seed=4)) != []
    with pytest.raises(InputError, match="it holds other; name the inputs x"):
        open_data(f"npz:{tmp_path}/c.npz", EXAMPLE)
    with pytest.raises(InputError, match="plain numbers"):
        open_data(f"npz:{tmp_path}/d.npz", EXAMPLE)


TOKENIZER = """
import torch
def lengths(texts):
    return torch.tensor([[len(t), t.count(" ")] for t in texts])
def batches():
    return [(torch.ones(4, 2).long(), torch.zeros(4))]
"""


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_texts_become_numbers_by_a_callable(tmp_path: Path, packing: str) -> None:
    (tmp_path / "words.py").write_text(TOKENIZER)
    tokenizer, example = f"tokenizer={tmp_path}/words.py:lengths", (torch.zeros(2, 2).long(),)
    lines = "label\ttext\n" + "".join(f'{"pos" if i % 2 else "neg"}\t{"a " * i}"\n' for i in range(10))
    path = tmp_path / f"a.tsv{packing}"
    packed = {"": lambda b: b, ".gz": gzip.compress, ".xz": lzma.compress}[packing](lines.encode())
    path.write_bytes(packed)
    batch = next(open_data(f"tsv:{path},{tokenizer}", example).batches())
    assert batch.labels is not None
    assert torch.equal(batch.inputs[0][:, 1] % 2, batch.labels)
    bare = tmp_path / "b.csv"
    bare.write_text("".join(f'"x, {i}",{i % 3}\n' for i in range(10)))
    data = open_data(f"csv:{bare},{tokenizer},text=0,label=1", example)
    assert {int(v) for b in data.batches() for v in b.labels} <= {0, 1, 2}  # type: ignore[union-attr]
    with pytest.raises(InputError, match="say how texts become numbers"):
        open_data(f"csv:{bare}", example)
    with pytest.raises(InputError, match="no column 'body' among label, text"):
        open_data(f"tsv:{path},{tokenizer},text=body", example)
    with pytest.raises(InputError, match="there is no option field"):
        open_data(f"tsv:{path},{tokenizer},field=body", example)


def test_a_callable_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(TOKENIZER)
    assert open_data(f"{tmp_path}/own.py:batches", (torch.zeros(2, 2).long(),)).labelled


def test_the_command_line_takes_data(tmp_path: Path) -> None:
    from slim_model.cli import main

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    torch.save(net, tmp_path / "m.pt")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(50, 6)).astype("f"), y=np.arange(50) % 3)
    arguments = [
        str(tmp_path / "m.pt"),
        str(tmp_path / "o.onnx"),
        "--no-bench",
        "--multiple-of",
        "1",
        "--criterion",
        "lda",
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--input", "2x6"])
    assert stopped.value.code == 2  # lda without data
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--input", "2x6", "--data", f"npz:{tmp_path}/d.npz", "--samples", "30", "--batch", "7",
              "--mean", "0.1", "--std", "2"])  # fmt: skip
    assert stopped.value.code == 0
    assert (tmp_path / "o.onnx").exists()


def test_the_recipe_has_the_options() -> None:
    recipe = Recipe.of(data="mnist:x", samples=3, batch=2, mean=(0.1,), std=(0.3,))
    data = recipe.data
    assert (data.samples, data.batch, data.mean, data.std) == (3, 2, (0.1,), (0.3,))
    assert set(KINDS) == {"mnist", "fashion-mnist", "cifar10", "imagefolder", "yolo", "npz", "csv", "tsv", "text"}


@pytest.mark.parametrize("kind", SOURCES)
def test_only_what_can_be_numbered_has_a_part_to_test_on(kind: str) -> None:
    """Batches come as they come: all of them are calibration, so accuracy is not read from them."""
    data = open_data(SOURCES[kind](), EXAMPLE, samples=40)
    assert data.parted == (kind in ("tensors", "data set", "tensor data set", "callable"))
    if data.parted:
        test = open_data(SOURCES[kind](), EXAMPLE, samples=40, split="test")
        assert not set(order_of(data)) & set(order_of(test))


def test_a_dict_is_read_by_the_names_of_the_inputs() -> None:
    image, text, labels = torch.randn(6, 3), torch.randn(6, 3), torch.arange(6)
    example = (image[:1], text[:1])
    nested = ("batch.image", "batch.text")
    for names, item in (
        (("image", "text"), {"text": text, "labels": labels, "image": image}),
        (nested, {"text": text, "image": image, "label": labels}),
        (nested, {"target": labels, "batch": {"text": text, "image": image}}),
        (("image", "y"), {"y": text, "label": labels, "image": image}),
    ):
        (batch,) = open_data([item], example, names=names).batches()
        assert torch.equal(batch.inputs[0], image)
        assert torch.equal(batch.inputs[1], text)
        assert torch.equal(batch.labels, labels)
    with pytest.raises(InputError, match=r"gave batches of image, txt; the model's input 'text' is not among them"):
        open_data([{"image": image, "txt": text}], example, names=("image", "text"))
