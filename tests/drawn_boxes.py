"""A small data set in YOLO's form: rectangles and discs on noise, drawn, with a label file beside each picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("box", "disc")


def draw_data_set(folder: Path, *, train: int = 8, val: int = 4, side: int = 64, seed: int = 0) -> Path:
    """Write the pictures, their labels and ``data.yaml``, whose place comes back."""
    random = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for number in range(count):
            picture, lines = _drawn(random, side)
            for kind, ending in (("images", "png"), ("labels", "txt")):
                place = folder / kind / part / f"{number}.{ending}"
                place.parent.mkdir(parents=True, exist_ok=True)
                picture.save(place) if kind == "images" else place.write_text("".join(lines))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    described = folder / "data.yaml"
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return described


def _drawn(random: np.random.Generator, side: int) -> tuple[Image.Image, list[str]]:
    picture = Image.fromarray(random.integers(0, 60, (side, side, 3), dtype=np.uint8))
    pen, lines = ImageDraw.Draw(picture), []
    for _ in range(2):
        kind, size = int(random.integers(len(NAMES))), int(random.integers(side // 5, side // 2))
        left, top = (int(x) for x in random.integers(0, side - size, 2))
        draw = pen.rectangle if kind == 0 else pen.ellipse
        draw((left, top, left + size, top + size), fill=((255, 80, 40), (40, 120, 255))[kind])
        middle = ((left + size / 2) / side, (top + size / 2) / side)
        lines.append(f"{kind} {middle[0]:.5f} {middle[1]:.5f} {size / side:.5f} {size / side:.5f}\n")
    return picture, lines
