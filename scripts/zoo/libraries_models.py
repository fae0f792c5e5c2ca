"""Models as their libraries build them, in the form in which each exports them: random weights, small pictures.

The packages are no dependencies: what is not installed has no rows. `pip install --no-deps ultralytics monai pytorchcv
segmentation-models-pytorch open-clip-torch torchsr torch-geometric`, and what these import.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from slim_model.loading.libraries.table import library_named

Built = tuple[nn.Module, tuple[Any, ...]]

_YOLO = (
    *("yolov3-tiny", "yolov5n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-cls", "yolov8n-obb", "yolov9t"),
    *("yolov10n", "yolo11n", "yolo11n-seg", "yolo12n", "yolo26n", "rtdetr-l"),
)
_SEGMENTATION = {
    "Unet": {"encoder_name": "resnet18"},
    "UnetPlusPlus": {"encoder_name": "mobilenet_v2"},
    "FPN": {"encoder_name": "efficientnet-b0"},
    "DeepLabV3Plus": {"encoder_name": "resnet18"},
    "PSPNet": {"encoder_name": "resnet18"},
    "Segformer": {"encoder_name": "mit_b0"},
}
_PYTORCHCV = (
    "pyramidnet110_a48_cifar10",
    "menet108_8x1_g3",
    "sqnxt23_w1",
    "espcnet_cityscapes",
    "resdropresnet20_cifar10",
)
_SUPER_RESOLUTION = ("edsr_baseline", "rcan", "carn_m", "ninasr_b0")


def _ultralytics(name: str) -> Built:
    row = library_named("ultralytics")
    assert row is not None
    assert row.builder is not None
    assert row.in_use is not None
    model = row.builder(f"{name}.yaml")().eval()
    row.in_use(model)
    return model, (torch.randn(2, 3, 64, 64),)


def _segmentation(name: str) -> Built:
    library = importlib.import_module("segmentation_models_pytorch")
    model = getattr(library, name)(encoder_weights=None, classes=3, **_SEGMENTATION[name])
    return model.eval(), (torch.randn(2, 3, 64, 64),)


def _pytorchcv(name: str) -> Built:
    model = importlib.import_module("pytorchcv.model_provider").get_model(name, pretrained=False)
    side = 32 if "cifar" in name else 64 if "espcnet" in name else 224
    return model.eval(), (torch.randn(2, 3, side, side),)


def _monai(name: str) -> Built:
    nets = importlib.import_module("monai.networks.nets")
    options: dict[str, Any] = {
        "UNet": {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 1},
        "BasicUNet": {"features": (8, 8, 16, 16, 32, 8)},
        "SegResNet": {"init_filters": 8},
        "AttentionUnet": {"channels": (8, 16, 32), "strides": (2, 2)},
    }[name]
    dimensions = 2 if name == "AttentionUnet" else 3
    model = getattr(nets, name)(spatial_dims=dimensions, in_channels=1, out_channels=2, **options)
    side = 32 if name == "BasicUNet" else 16  # halved four times, and a norm needs two places
    return model.eval(), (torch.randn(2, 1, *(side,) * dimensions),)


def _open_clip(name: str) -> Built:
    model = importlib.import_module("open_clip").create_model(name, pretrained=None).visual
    side = model.image_size if isinstance(model.image_size, int) else model.image_size[0]
    return model.eval(), (torch.randn(1, 3, side, side),)


def _super_resolution(name: str) -> Built:
    builder = getattr(importlib.import_module("torchsr.models"), name)
    return builder(scale=2, pretrained=False).eval(), (torch.rand(2, 3, 16, 16),)


class _Graph(nn.Module):
    """Two layers of a graph net (Kipf 2017) over a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        layers = importlib.import_module("torch_geometric.nn.dense")
        self.first, self.second = layers.DenseGCNConv(16, 32), layers.DenseGCNConv(32, 7)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x, adjacency).relu(), adjacency)
        return result


def _graph_net() -> Built:
    links = (torch.rand(2, 10, 10) < 0.3).float()
    return _Graph().eval(), (torch.randn(2, 10, 16), links)


def _all() -> dict[str, tuple[str, Callable[[], Built]]]:
    """By name: the package that must be there, and what builds the model."""
    rows: dict[str, tuple[str, Callable[[], Built]]] = {}
    for package, make, names in (
        ("ultralytics", _ultralytics, _YOLO),
        ("segmentation_models_pytorch", _segmentation, tuple(_SEGMENTATION)),
        ("pytorchcv", _pytorchcv, _PYTORCHCV),
        ("monai", _monai, ("UNet", "BasicUNet", "SegResNet", "AttentionUnet")),
        ("open_clip", _open_clip, ("RN50", "ViT-S-32")),
        ("torchsr", _super_resolution, _SUPER_RESOLUTION),
    ):
        rows |= {f"{package}.{name}": (package, partial(make, name)) for name in names}
    return rows | {"torch_geometric.gcn": ("torch_geometric", _graph_net)}


MODELS = {name: build for name, (package, build) in _all().items() if importlib.util.find_spec(package)}
