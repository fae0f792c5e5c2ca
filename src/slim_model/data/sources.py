"""What may be typed after ``--data``: one row a kind in ``data.options.SOURCES``. Pictures are in ``data.pictures``."""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib
import io
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_model.data.datasets import Divided, Split
from slim_model.data.options import SOURCES
from slim_model.data.user_faults import made_by, user_faults
from slim_model.errors import InputError, first_line
from slim_model.loading.input_spec import describe_error
from slim_model.loading.user_code import import_file, make_importable

_FORMS = (
    "Write fashion-mnist:DIR, mnist:DIR, cifar10:DIR, imagefolder:DIR, yolo:FILE.yaml, npz:FILE, "
    "csv:FILE,tokenizer=package.module:callable (or tsv), text:FILE, package.module:callable or file.py:callable"
)


def open_spec(spec: str, example: Sequence[Any], split: Split) -> Any:
    """What ``data.open_data`` can read: a data set, tensors or an iterable of batches."""
    kind, colon, place = spec.partition(":")
    if not colon or not place:
        raise InputError(f"--data {spec!r} names no data. {_FORMS}.")
    if kind in SOURCES:
        path = Path(place.partition(",")[0])
        with user_faults(f"--data {spec!r}", "looking for it"):  # a name may be too long
            is_there = path.exists()
        if not is_there:
            raise InputError(f"--data {spec!r}: there is no {path}.")
        return SOURCES[kind](spec, place, example, split)
    samples = made_by(f"--data {spec!r}", _callable(spec, spec))
    # A data set may be callable, too: only what cannot be gone through makes one.
    return made_by(f"--data {spec!r}", samples) if callable(samples) and not hasattr(samples, "__iter__") else samples


# -- data sets with a test part of their own ------------------------------------------------------------------------


def _idx(name: str) -> Callable[..., Any]:
    """MNIST and its like. torchvision wants the files unpacked; packed ones are unpacked in a temporary folder."""

    def read(spec: str, place: str, example: Sequence[Any], split: Split) -> Any:
        import torchvision

        kind = getattr(torchvision.datasets, name)
        with _unpacked(Path(place), name) as root:
            try:
                dataset = kind(root, train=split == "train", download=False)
            except Exception as error:  # of files that are missing, cut or something else
                raise InputError(f"--data {spec!r}: no {name} files are in {place}: {error}.") from error
        return Divided((_like(dataset.data[:, None], example), dataset.targets))

    return read


mnist = _idx("MNIST")
fashion_mnist = _idx("FashionMNIST")


@contextlib.contextmanager
def _unpacked(folder: Path, name: str) -> Iterator[Path]:
    files = sorted(p for p in folder.rglob("*-ubyte*") if p.name.removesuffix(".gz").endswith("-ubyte"))
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / name / "raw"
        raw.mkdir(parents=True)
        for path in files:
            opened: Any = gzip.open if path.suffix == ".gz" else open
            with user_faults(str(path), "unpacking it"), opened(path, "rb") as packed:
                (raw / path.name.removesuffix(".gz")).write_bytes(packed.read())
        yield Path(temporary)


def cifar10(spec: str, place: str, example: Sequence[Any], split: Split) -> Any:
    import torchvision

    try:
        dataset = torchvision.datasets.CIFAR10(place, train=split == "train", download=False)
    except Exception as error:  # of files that are missing or cut
        raise InputError(
            f"--data {spec!r}: {error} The folder must hold cifar-10-batches-py, as torchvision unpacks it."
        ) from error
    return Divided((_like(torch.from_numpy(dataset.data).permute(0, 3, 1, 2), example), torch.tensor(dataset.targets)))


def _like(pixels: Tensor, example: Sequence[Any]) -> Tensor:
    """Pictures ``(N, C, H, W)`` in the size and number of channels of the model's input."""
    shape = example[0].shape if example and isinstance(example[0], Tensor) else pixels.shape
    if len(shape) == 4 and pixels.shape[1] == 1 and shape[1] == 3:
        pixels = pixels.expand(-1, 3, -1, -1)
    if len(shape) != 4:
        return pixels.reshape(len(pixels), *shape[1:]) if pixels[0].numel() == shape[1:].numel() else pixels
    if pixels.shape[2:] != shape[2:]:
        from torchvision.transforms.v2.functional import resize

        pixels = torch.cat([resize(part, list(shape[2:]), antialias=True) for part in pixels.split(1000)])
    return pixels


# -- files of the user's own ----------------------------------------------------------------------------------------


def npz(spec: str, place: str, example: Sequence[Any], split: Split) -> Any:
    """Arrays x (inputs) and y (labels), or x_train, y_train, x_test, y_test; a single array is x."""
    try:
        loaded = np.load(place, allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else {"x": loaded}
    except Exception as error:  # cut, empty, no archive, pickles: damaged files fail in many ways
        raise InputError(
            f"--data {spec!r}: it cannot be read as .npz ({first_line(error)}). Write it with numpy.savez, of plain "
            "numbers."
        ) from error
    own = f"x_{split}" in arrays
    inputs = next((arrays[n] for n in (f"x_{split}", "x", "inputs", "images", "data") if n in arrays), None)
    labels = next((arrays[n] for n in (f"y_{split}", "y", "labels", "targets") if n in arrays), None)
    if inputs is None:
        held_names = ", ".join(arrays) or "nothing"
        raise InputError(f"--data {spec!r}: it holds {held_names}; name the inputs x and the labels y.")
    for name, array in (("x", inputs), ("y", labels)):
        if array is None:
            continue
        if not isinstance(array, np.ndarray):
            raise InputError(f"--data {spec!r}: {name} is no array. Write the file with numpy.savez.")
        if array.dtype.kind not in "biuf" or not array.ndim:
            raise InputError(
                f"--data {spec!r}: {name} is {array.dtype} of shape {array.shape}. Give numbers, a row a sample."
            )
    tensors = tuple(torch.from_numpy(a) for a in (inputs, labels) if a is not None)
    return Divided(tensors) if own else tensors if len(tensors) > 1 else tensors[0]


def text(spec: str, place: str, example: Sequence[Any], split: Split) -> Any:
    """``FILE,tokenizer=package.module:callable[,text=column][,label=column]``; columns by name or by number from 0.

    The tokenizer takes a list of texts and gives the model's input. A file may be packed (.gz, .xz).
    """
    file, *rest = place.split(",")
    options = dict(part.partition("=")[::2] for part in rest)
    if unknown := set(options) - {"tokenizer", "text", "label"}:
        raise InputError(f"--data {spec!r}: there is no option {', '.join(unknown)}. {_FORMS}.")
    if "tokenizer" not in options:
        raise InputError(f"--data {spec!r}: say how texts become numbers, with tokenizer=package.module:callable.")
    texts, labels = _columns(spec, Path(file), options.get("text", "text"), options.get("label", "label"))
    tokenizer = _callable(spec, options["tokenizer"])
    with user_faults(
        f"--data {spec!r}", f"turning {len(texts)} texts into a tensor with tokenizer={options['tokenizer']}"
    ):
        tokens = torch.as_tensor(tokenizer(texts))
    return tokens if labels is None else (tokens, labels)


def _columns(spec: str, file: Path, text: str, label: str) -> tuple[list[str], Tensor | None]:
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    opened: Any = openers.get(file.suffix, open)
    is_csv = spec.startswith("csv:")
    form: dict[str, Any] = {"delimiter": ","} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    try:
        with opened(file, "rt", encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.reader(io.StringIO(lines.read()), **form) if row]
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"--data {spec!r}: it cannot be read as a table ({first_line(error)}). Write it in UTF-8, a row a text."
        ) from error
    # A column by number needs no header, one by name is found in the first row.
    header = [] if text.isdigit() or not rows else rows.pop(0)
    if not text.isdigit() and text not in header:
        raise InputError(f"--data {spec!r}: no column {text!r} among {', '.join(header)}; give text=NAME or text=0.")
    at = int(text) if text.isdigit() else header.index(text)
    where = int(label) if label.isdigit() else header.index(label) if label in header else None
    short = next((i for i, row in enumerate(rows) if len(row) <= max(at, where or 0)), None)
    if short is not None:
        raise InputError(f"--data {spec!r}: row {short + 1} has {len(rows[short])} columns.")
    if where is None:
        return [row[at] for row in rows], None
    # Labels that are numbers stay as they are; words are numbered in alphabetical order.
    names = sorted({row[where] for row in rows})
    numbers = {name: int(name) if all(n.isdigit() for n in names) else i for i, name in enumerate(names)}
    return [row[at] for row in rows], torch.tensor([numbers[row[where]] for row in rows])


def _callable(spec: str, text: str) -> Callable[..., Any]:
    place, _, name = text.rpartition(":")
    if not place:
        raise InputError(f"--data {spec!r} names no data. {_FORMS}.")
    try:
        if place.endswith(".py"):
            attribute: Any = import_file(Path(place))
        else:
            make_importable(Path())
            attribute = importlib.import_module(place)
        for part in name.split("."):
            attribute = getattr(attribute, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--data {spec!r}: {error}. {_FORMS}.") from error
    except InputError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"--data {spec!r}: importing {place} failed with {describe_error(error)}.") from error
    if not callable(attribute):
        raise InputError(f"--data {spec!r}: {text} is a {type(attribute).__name__}, not a callable.")
    return attribute
