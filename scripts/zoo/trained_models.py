"""Published weights in architectures of our own (``trained/``), on photographs; the weights stay as they are.

The files are found as ``benchmarks/datasets.py`` finds data sets: under $SLIM_MODEL_DATA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from trained.blazeface import BlazeFace
from trained.dicenet import dicenet
from trained.espnetv2 import espnetv2
from trained.mtcnn import ONet, PNet, RNet
from trained.retinaface import RetinaFace
from trained.ultraface import UltraFace
from trained.yunet import YuNet

from datasets import IMAGENET_NORM, data_file

Inputs = tuple[Any, ...]


class _Trained(NamedTuple):
    """``side``: height and width of the photographs. ``colours``: from 0 .. 255 to what the weights were trained on."""

    architecture: Callable[[], nn.Module]
    weights: str
    side: tuple[int, int]
    colours: Callable[[Tensor], Tensor]


def _around_zero(photos: Tensor) -> Tensor:
    return photos / 127.5 - 1


def _as_mtcnn(photos: Tensor) -> Tensor:
    return (photos - 127.5) / 128


def _as_ultraface(photos: Tensor) -> Tensor:
    return (photos - 127) / 128


def _blue_first(photos: Tensor) -> Tensor:
    return photos.flip(1)


def _blue_first_less_mean(photos: Tensor) -> Tensor:
    return photos.flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)


def _as_imagenet(photos: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET_NORM)
    return (photos / 255 - mean) / std


_EDGENETS = "weights/edgenets-seg/{}_s_{}_pascal_256x256.pth"
_TABLE = {
    "blazeface": _Trained(BlazeFace, "weights/mediapipe/blazeface.pth", (128, 128), _around_zero),
    "retinaface_mobile0.25": _Trained(
        RetinaFace, "weights/retinaface-mobile0.25/mobilenet0.25_Final.pth", (224, 224), _blue_first_less_mean
    ),
    "mtcnn_pnet": _Trained(PNet, "weights/mtcnn/pnet.pt", (96, 96), _as_mtcnn),
    "mtcnn_rnet": _Trained(RNet, "weights/mtcnn/rnet.pt", (24, 24), _as_mtcnn),
    "mtcnn_onet": _Trained(ONet, "weights/mtcnn/onet.pt", (48, 48), _as_mtcnn),
    "ultraface_rfb": _Trained(
        functools.partial(UltraFace, receptive_field=True),
        "weights/ultraface/version-RFB-320.pth",
        (240, 320),
        _as_ultraface,
    ),
    "ultraface_slim": _Trained(
        functools.partial(UltraFace, receptive_field=False),
        "weights/ultraface/version-slim-320.pth",
        (240, 320),
        _as_ultraface,
    ),
    "yunet_n": _Trained(YuNet, "weights/yunet/yunet_n.pth", (224, 224), _blue_first),
    **{
        f"{name}_{scale}": _Trained(
            functools.partial(architecture, scale), _EDGENETS.format(name, scale), (256, 256), _as_imagenet
        )
        for name, architecture in (("espnetv2", espnetv2), ("dicenet", dicenet))
        for scale in (0.5, 1.0)
    },
}
_PHOTOS = ("bees/1092977343_cb42b38d62.jpg", "ants/1030023514_aad5c608f9.jpg")


def _build(name: str) -> tuple[nn.Module, Inputs]:
    row = _TABLE[name]
    return _loaded(row.architecture(), row.weights), (row.colours(_photos(*row.side)),)


def _loaded(model: nn.Module, name: str) -> nn.Module:
    stored = torch.load(data_file(name), map_location="cpu", weights_only=True)
    model.load_state_dict(stored.get("state_dict", stored), strict=True)
    return model.eval()


def _photos(height: int, width: int) -> Tensor:
    """(2, 3, height, width): red, green, blue from 0 to 255."""
    folder = data_file("photos/hymenoptera/train")
    photos = [Image.open(folder / name).convert("RGB").resize((width, height)) for name in _PHOTOS]
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float()


MODELS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {name: functools.partial(_build, name) for name in _TABLE}
