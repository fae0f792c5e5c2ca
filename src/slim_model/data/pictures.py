"""Pictures in folders: one folder a class, one folder without labels, with or without parts; and as YOLO has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from slim_model.data.datasets import Split
from slim_model.errors import InputError, first_line

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
_PARTS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation", "eval")}
"""The usual names of the parts, in any case; the first that is there is taken."""


def imagefolder(spec: str, place: str, example: Sequence[Any], split: Split) -> Any:
    """The part ``split`` of the pictures in the folder ``place``, in the size of the model's input.

    A folder that has a training part and a test part is read as such; classes are then those of the training part, and
    the test part must have the same. Without a test part every fifth picture of the training part is held out for it.
    """
    folder = Path(place)
    parts = {part: _part(folder, names) for part, names in _PARTS.items()}
    if parts["train"] is None and parts["test"] is not None:
        raise InputError(
            f"--data {spec!r}: {folder} has a part {parts['test'].name} and none to calibrate on. Name the other "
            f"{_PARTS['train'][0]}, or give one folder with a folder for each class."
        )
    root = parts["train"] or folder
    own = parts[split] if parts["test"] else None  # without a test part, some of the training part is held out
    classes = _classes(root)
    if own and own != root and _classes(own) != classes:
        apart = sorted(set(_classes(own)) ^ set(classes))
        raise InputError(
            f"--data {spec!r}: {own.name} and {root.name} have not the same classes: {', '.join(apart[:5])} "
            f"{'is' if len(apart) == 1 else 'are'} in one of them alone."
        )
    pictures = Pictures(spec, _listed(own or root, classes), _transform(spec, example))
    if not len(pictures):
        raise InputError(f"--data {spec!r}: no pictures are in {own or root}.")
    pictures.divided = own is not None
    return pictures


class Pictures(Dataset[Any]):
    """(picture, class number) of ``files``, or pictures alone where they have no number. ``divided``: none of it
    belongs to another part."""

    def __init__(self, spec: str, files: Sequence[tuple[Path, int | None]], transform: Callable[[Any], Tensor]) -> None:
        self.spec, self.files, self.transform, self.divided = spec, files, transform, False

    def __len__(self) -> int:
        return len(self.files)

    def labels_of(self, rows: Sequence[int]) -> Tensor:
        """The class numbers of these pictures, which are not read; there must be folders of classes."""
        return torch.tensor([self.files[i][1] for i in rows])

    def __getitem__(self, i: int) -> Any:
        path, number = self.files[i]
        try:
            with Image.open(path) as file:
                picture = self.transform(file.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"--data {self.spec!r}: {path} cannot be read as a picture ({first_line(error)}). "
                "Mend it, or take it out of the folder."
            ) from error
        return picture if number is None else (picture, number)


def _is_picture(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in _ENDINGS


def _listed(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int | None]]:
    """The pictures of each class, or those in the folder where there are no folders of classes."""
    places: list[tuple[Path, int | None]] = [(folder / name, number) for number, name in enumerate(classes)]
    return [
        (path, number)
        for place, number in places or [(folder, None)]
        for path in sorted(place.rglob("*") if number is not None else place.iterdir())
        if _is_picture(path)
    ]


def _part(folder: Path, names: Sequence[str]) -> Path | None:
    """The first folder in ``folder`` that bears one of ``names``."""
    folders = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    return next((folders[name] for name in names if name in folders), None)


def _classes(folder: Path) -> list[str]:
    """The folders in ``folder`` that hold pictures, by name."""
    return (
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []
    )


def _transform(spec: str, example: Sequence[Any]) -> Callable[[Any], Tensor]:
    """Short side to the model's input, the middle cut out, values in [0, 1]."""
    from torchvision.transforms import v2

    shape = example[0].shape if example and isinstance(example[0], Tensor) else ()
    if len(shape) != 4:
        raise InputError(f"--data {spec!r}: pictures do not fit a model whose input is {tuple(shape)}.")
    steps = [v2.Grayscale()] if shape[1] == 1 else []
    sizes = [v2.Resize(max(shape[2:]), antialias=True), v2.CenterCrop(tuple(shape[2:]))]
    return v2.Compose([*steps, *sizes, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])  # type: ignore[no-any-return]


# -- data sets in YOLO's form ------------------------------------------------------------------------------------------

_YOLO_PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test")}
_GREY = 114
"""What surrounds a picture that is not of the input's shape."""


def yolo(spec: str, place: str, example: Sequence[Any], split: Split) -> Pictures:
    """The part ``split`` of the data set that a yaml such as ``coco.yaml`` describes: pictures as wide or as high as
    the model's input, grey around them, values in [0, 1]. Label files are left aside: recovery takes none, and the
    library's own validator reads them. Raises InputError."""
    shape = example[0].shape if example and isinstance(example[0], Tensor) else ()
    if len(shape) != 4 or shape[1] != 3:
        raise InputError(f"--data {spec!r}: pictures do not fit a model whose input is {tuple(shape)}.")
    described = _described(spec, Path(place))
    name = next((name for name in _YOLO_PARTS[split] if described.get(name)), None)
    if name is None:
        raise InputError(
            f"--data {spec!r}: {place} names no {' or '.join(_YOLO_PARTS[split])}. Name a folder of pictures."
        )
    given = described[name]
    places = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    root = Path(place).parent / str(described.get("path") or ".")
    files = sorted({path for entry in places for path in _pictures(spec, root / str(entry), root)})
    if not files:
        raise InputError(f"--data {spec!r}: no pictures are at {name}: {given}, below {root}.")
    height, width = (int(size) for size in shape[2:])
    pictures = Pictures(spec, [(path, None) for path in files], lambda picture: _boxed(picture, height, width))
    pictures.divided = True
    return pictures


def _described(spec: str, file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"--data {spec!r} needs PyYAML. Install it: pip install pyyaml") from error
    try:
        described = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--data {spec!r}: {file} cannot be read as yaml ({first_line(error)}).") from error
    if not isinstance(described, dict):
        raise InputError(f"--data {spec!r}: {file} has no names. Write train: and val:, each a folder of pictures.")
    return described


def _pictures(spec: str, place: Path, root: Path) -> Iterator[Path]:
    """Those in a folder and below it, or those that a text file lists."""
    if place.is_dir():
        yield from (path for path in place.rglob("*") if _is_picture(path))
    elif place.is_file():
        lines = place.read_text(encoding="utf-8").split("\n")
        yield from (root / line.strip() for line in lines if line.strip())
    else:
        raise InputError(
            f"--data {spec!r}: there is no {place}. Its yaml says where the pictures are: path, train, val."
        )


def _boxed(picture: Image.Image, height: int, width: int) -> Tensor:
    """``picture`` in the middle of ``(3, height, width)``, as large as fits."""
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    whole = Image.new("RGB", (width, height), (_GREY,) * 3)
    whole.paste(picture.resize(size, Image.Resampling.BILINEAR), ((width - size[0]) // 2, (height - size[1]) // 2))
    return torch.from_numpy(np.asarray(whole).copy()).permute(2, 0, 1).float() / 255
