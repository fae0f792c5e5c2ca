"""Pictures of a data set in YOLO's form: a yaml that names folders, ``coco.yaml``. Its label files are left aside.

Calibration and recovery take none; the library's own validator reads them (mAP).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from slim_model.data.datasets import Split
from slim_model.data.pictures import Pictures, is_picture
from slim_model.errors import InputError, first_line

_PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test")}
_GREY = 114
"""What surrounds a picture that is not of the input's shape."""


def yolo(spec: str, place: str, example: Sequence[Any], split: Split) -> Pictures:
    """The part ``split`` of the data set that the yaml at ``place`` describes: pictures as wide or as high as the
    model's input, grey around them, values in [0, 1]. Raises InputError."""
    shape = example[0].shape if example and isinstance(example[0], Tensor) else ()
    if len(shape) != 4 or shape[1] != 3:
        raise InputError(f"--data {spec!r}: pictures do not fit a model whose input is {tuple(shape)}.")
    described = _described(spec, Path(place))
    name = next((name for name in _PARTS[split] if described.get(name)), None)
    if name is None:
        raise InputError(f"--data {spec!r}: {place} names no {' or '.join(_PARTS[split])}. Name a folder of pictures.")
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
        yield from (path for path in place.rglob("*") if is_picture(path))
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
