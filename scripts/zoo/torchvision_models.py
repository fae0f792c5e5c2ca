"""Every builder of torchvision that is not quantised, with random weights and the smallest sensible input."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from one import enliven
from torch import nn

Inputs = tuple[Any, ...]

_SIDES = {"vit": 224, "maxvit": 224, "swin": 224, "inception": 128, "alexnet": 96, "fcn": 96, "deeplabv3": 96}
"""Pixels by the beginning of the name; others take ``_SIDE``."""
_SIDE = 96
_VIDEOS = {
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (8, 64)),
    "s3d": (16, 224),
    **dict.fromkeys(("mvit_v1_b", "mvit_v2_s"), (16, 224)),
    **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), (4, 64)),
}
"""Frames and pixels."""
_DETECTORS = ("rcnn", "fcos", "retinanet", "ssd")


def _build(name: str) -> tuple[nn.Module, Inputs]:
    if any(part in name for part in _DETECTORS):
        sizes: dict[str, Any] = {} if "ssd" in name else {"min_size": 224, "max_size": 256}
        # random weights are sure of nothing, and at the usual threshold no box is left
        sizes |= {"box_score_thresh": 0.0} if "rcnn" in name else {"score_thresh": 0.005}
        side = 320 if "ssdlite" in name else 300 if "ssd" in name else 224
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **sizes)
        image = torch.rand(3, side, side)
        if hasattr(model.backbone, "fpn"):
            _scale(model.eval(), image)
        return model, ([image],)
    if name.startswith(("fcn", "deeplabv3", "lraspp")):
        return torchvision.models.get_model(name, weights=None, weights_backbone=None), (_image(name),)
    model = torchvision.models.get_model(name, weights=None, **_kwargs(name))
    if name.startswith("raft"):
        return model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    if name in _VIDEOS:
        frames, side = _VIDEOS[name]
        return model, (torch.randn(1, 3, frames, side, side),)
    return model, (_image(name),)


@torch.no_grad()
def _scale(model: nn.Module, image: torch.Tensor) -> None:
    """Without trained statistics features are hundreds, and every box is the whole picture, or thousandths, and all
    boxes are alike."""
    enliven(model)
    features = model.backbone(image[None])["0"]
    for parameter in model.backbone.fpn.layer_blocks.parameters():
        parameter.mul_(10 / features.std())


def _kwargs(name: str) -> dict[str, Any]:
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _image(name: str) -> torch.Tensor:
    side = next((side for start, side in _SIDES.items() if name.startswith(start)), _SIDE)
    return torch.randn(1, 3, side, side)


MODELS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    name: functools.partial(_build, name)
    for name in torchvision.models.list_models()
    if not name.startswith("quantized")
}
