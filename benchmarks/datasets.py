"""The data sets of the benchmarks, as tensors held in memory.

    train = mnist("train")          # Split(inputs (60000, 1, 28, 28) float32, labels (60000,) int64)

Nothing is downloaded: the files lie under ``data_root()``.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import lzma
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PADDING, UNKNOWN = 0, 1
"""Token ids that are no word."""


class Split(NamedTuple):
    """One part of a data set: ``inputs[i]`` has class ``labels[i]`` (int64)."""

    inputs: Tensor
    labels: Tensor


class Norm(NamedTuple):
    """``(pixel / 255 - mean) / std``, one number a channel."""

    mean: Sequence[float]
    std: Sequence[float]


MNIST_NORM = Norm([0.1307], [0.3081])
FASHION_NORM = Norm([0.2860], [0.3530])
CIFAR10_NORM = Norm([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
IMAGENET_NORM = Norm([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
"""The norm the published CIFAR ResNets were trained with, too."""
LITE_NORM = Norm([0.498] * 3, [0.502] * 3)
"""EfficientNet-Lite's."""


def data_root() -> Path:
    """The folder of all data sets: $SLIM_MODEL_DATA, or ../shared/data beside the repository."""
    given = os.environ.get("SLIM_MODEL_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        said = "SLIM_MODEL_DATA names" if given else "SLIM_MODEL_DATA is not set, and the default is"
        raise FileNotFoundError(f"no data: {said} {root}, which is no folder. Set SLIM_MODEL_DATA.")
    return root


def data_file(name: str) -> Path:
    """``data_root() / name``, or an error that says which file is missing and where it was looked for."""
    path = data_root() / name
    if not path.exists():
        raise FileNotFoundError(f"no data: {name} is not under {data_root()}. Set SLIM_MODEL_DATA.")
    return path


def mnist(split: str = "train", *, norm: Norm | None = MNIST_NORM) -> Split:
    """Digits, 60,000 train and 10,000 test; inputs (N, 1, 28, 28). ``norm=None`` leaves pixels in [0, 1]."""
    return _idx_images("mnist/MNIST/raw", split, norm)


def fashion_mnist(split: str = "train", *, norm: Norm | None = FASHION_NORM) -> Split:
    """Clothes, 60,000 train and 10,000 test; inputs (N, 1, 28, 28). ``norm=None`` leaves pixels in [0, 1]."""
    return _idx_images("fashion-mnist/FashionMNIST/raw", split, norm)


def fashion_mnist_apart(split: str = "train", *, norm: Norm | None = FASHION_NORM) -> Split:
    """The training part of ``fashion_mnist`` as 50,000 train and 10,000 test, for choices that must not see the test
    part."""
    _check_split(split, ("train", "test"))
    whole = fashion_mnist("train", norm=norm)
    order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(77))
    rows = order[:50_000] if split == "train" else order[50_000:]
    return Split(whole.inputs[rows], whole.labels[rows])


def cifar10(split: str = "train", *, norm: Norm | None = CIFAR10_NORM) -> Split:
    """Photos, 50,000 train and 10,000 test; inputs (N, 3, 32, 32). ``norm=None`` leaves pixels in [0, 1]."""
    _check_split(split, ("train", "test"))
    labels = np.load(data_file(f"cifar10/{split}_labels.npy"))
    sheets = sorted((data_root() / "cifar10").glob(f"{split}_*.webp"))
    pixels = np.concatenate([_sheet(path) for path in sheets])
    if len(pixels) != len(labels):
        raise FileNotFoundError(f"cifar10: {len(sheets)} {split} sheets hold {len(pixels)} images of {len(labels)}.")
    return Split(_normalise(pixels, norm), torch.from_numpy(labels).long())


def imagenet(split: str, *, norm: Norm | None = LITE_NORM) -> Split:
    """Photos of 1,000 classes, the middle 224 x 224 of each: 800 train, whose labels are -1 (unknown), and
    1,000 test (of the validation pictures)."""
    _check_split(split, ("train", "test"))
    folder = data_file(f"imagenet/{'calibration' if split == 'train' else 'val'}")
    rows = [line.split("\t") for line in data_file("imagenet/val_labels.tsv").read_text().splitlines()]
    known = {name: int(number) for name, number in rows if number.isdecimal()}
    labels = known if split == "test" else dict.fromkeys(sorted(path.name for path in folder.glob("*")), -1)
    pixels = np.stack([_middle(folder / name, 224) for name in labels])
    return Split(_normalise(pixels, norm), torch.tensor(list(labels.values())))


def _middle(path: Path, size: int) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    top, left = ((whole - size) // 2 for whole in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def imdb(split: str = "train", *, vocabulary: int = 20_000, length: int = 400) -> Split:
    """Film reviews, 5,000 train and 5,000 test, label 1 is praise; inputs (N, length) int64 token ids."""
    _check_split(split, ("train", "test"))
    texts, labels = _imdb_rows(split)
    return Split(encode(texts, _vocabulary("imdb", vocabulary), length), torch.tensor(labels))


def sst2(split: str = "train", *, vocabulary: int = 20_000, length: int = 48) -> Split:
    """Sentences of film reviews, 6,920 train, 872 dev, 1,821 test; as ``imdb``."""
    _check_split(split, ("train", "dev", "test"))
    texts, labels = _sst2_rows(split)
    return Split(encode(texts, _vocabulary("sst2", vocabulary), length), torch.tensor(labels))


DATASETS: dict[str, Callable[..., Split]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "fashion_mnist_apart": fashion_mnist_apart,
    "cifar10": cifar10,
    "imdb": imdb,
    "sst2": sst2,
}


def words(text: str) -> list[str]:
    """``"It isn't <br />GOOD!"`` -> ``["it", "isn't", "good", "!"]``"""
    return re.findall(r"[a-z0-9']+|[!?]", text.lower().replace("<br />", " "))


def encode(texts: Sequence[str], ids: dict[str, int], length: int) -> Tensor:
    """Token ids (len(texts), length): longer texts are cut, shorter ones padded at the end."""
    tokens = torch.full((len(texts), length), PADDING)
    for row, text in zip(tokens, texts, strict=True):
        found = [ids.get(word, UNKNOWN) for word in words(text)[:length]]
        row[: len(found)] = torch.tensor(found)
    return tokens


@functools.cache
def _vocabulary(name: str, size: int) -> dict[str, int]:
    """The commonest words of the training texts, numbered from 2 by falling frequency."""
    texts, _ = {"imdb": _imdb_rows, "sst2": _sst2_rows}[name]("train")
    counts = Counter(word for text in texts for word in words(text))
    return {word: rank + 2 for rank, (word, _) in enumerate(counts.most_common(size - 2))}


@functools.cache
def _imdb_rows(split: str) -> tuple[list[str], list[int]]:
    lines = lzma.decompress(data_file(f"text/imdb/{split}_5000.tsv.xz").read_bytes()).decode()
    rows = list(csv.DictReader(io.StringIO(lines), delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["text"] for row in rows], [int(row["label"]) for row in rows]


@functools.cache
def _sst2_rows(split: str) -> tuple[list[str], list[int]]:
    lines = gzip.decompress(data_file(f"text/sst2/{split}.tsv.gz").read_bytes()).decode().splitlines()
    rows = [line.rsplit("\t", 1) for line in lines if line]
    return [text for text, _ in rows], [int(label) for _, label in rows]


def _idx_images(folder: str, split: str, norm: Norm | None) -> Split:
    _check_split(split, ("train", "test"))
    prefix = {"train": "train", "test": "t10k"}[split]
    pixels = _idx(data_file(f"{folder}/{prefix}-images-idx3-ubyte.gz"))
    labels = _idx(data_file(f"{folder}/{prefix}-labels-idx1-ubyte.gz"))
    return Split(_normalise(pixels[..., None], norm), torch.from_numpy(labels).long())


def _idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes: 0, 0, type 8, rank, then rank big-endian sizes, then the values.

    torchvision's reader wants the file unpacked beside the packed one, which a read-only folder forbids.
    """
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is no idx file of unsigned bytes.")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()


def _sheet(path: Path) -> np.ndarray:
    """One picture of 25 rows and 40 columns of 32x32 RGB tiles -> (1000, 32, 32, 3) bytes."""
    tiles = np.asarray(Image.open(path).convert("RGB")).reshape(25, 32, 40, 32, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)


def _normalise(pixels: np.ndarray, norm: Norm | None) -> Tensor:
    """Bytes (N, H, W, C) -> float32 (N, C, H, W), in [0, 1] or normalised."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)
    if norm is None:
        return images
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in norm)
    return images.sub_(mean).div_(std)


def _check_split(split: str, choices: Sequence[str]) -> None:
    if split not in choices:
        raise ValueError(f"no split '{split}': choose from {', '.join(choices)}.")
