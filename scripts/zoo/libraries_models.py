"""Models as their libraries build them, in the form in which each exports them: random weights, small pictures.

The packages are no dependencies: what is not installed has no rows. `pip install --no-deps ultralytics monai pytorchcv
segmentation-models-pytorch open-clip-torch torchsr torch-geometric torchreid rfdetr asteroid conformer resemblyzer
pytorch-tabnet rtdl-revisiting-models neuralforecast`, and what these import.
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
_PERSONS = ("osnet_x0_25", "osnet_ain_x0_25", "mlfn", "hacnn")
_SPEECH: dict[str, dict[str, Any]] = {
    "ConvTasNet": {"n_blocks": 3, "n_repeats": 2, "bn_chan": 32, "hid_chan": 64, "skip_chan": 32, "n_filters": 64},
    "DPRNNTasNet": {"n_repeats": 2, "bn_chan": 32, "hid_size": 32, "chunk_size": 50},
    "SuDORMRFImprovedNet": {"num_blocks": 2, "bn_chan": 32, "upsampling_depth": 3},
}
_TABLES: dict[str, dict[str, Any]] = {
    "MLP": {"n_blocks": 2, "d_block": 64, "dropout": 0.1},
    "ResNet": {"n_blocks": 2, "d_block": 64, "d_hidden_multiplier": 2.0, "dropout1": 0.1, "dropout2": 0.0},
    "FTTransformer": {},
}
_FORECASTS: dict[str, dict[str, Any]] = {
    "NHITS": {},
    "NBEATS": {},
    "PatchTST": {"hidden_size": 32, "n_heads": 4, "linear_hidden_size": 64},
    "TFT": {"hidden_size": 32},
    "TiDE": {"hidden_size": 64},
    "LSTM": {"encoder_hidden_size": 64},
    "BiTCN": {"hidden_size": 16},
    "TSMixer": {"n_series": 3},
}


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


def _persons(name: str) -> Built:
    """Features of a person to be seen again: what the net gives when it does not train."""
    model = importlib.import_module("torchreid.reid.models").build_model(
        name, num_classes=10, pretrained=False, use_gpu=False
    )
    return model.eval(), (torch.randn(2, 3, *((160, 64) if name == "hacnn" else (128, 64))),)


def _rfdetr(name: str) -> Built:
    settings = getattr(importlib.import_module("rfdetr.config"), f"{name}Config")
    nothing = {"pretrain_weights": "none.pth", "device": "cpu"}  # a name that is given keeps it from downloading
    side = 24 * settings.model_fields["patch_size"].default
    build = importlib.import_module("rfdetr.models.lwdetr").build_model_from_config
    model = build(settings(resolution=side, num_queries=20, num_select=20, **nothing)).eval()
    model.export()
    return model, (torch.randn(1, 3, side, side),)


def _speech(name: str) -> Built:
    """Two voices out of one recording."""
    model = getattr(importlib.import_module("asteroid.models"), name)(n_src=2, **_SPEECH[name])
    return model.eval(), (torch.randn(2, 1, 1600),)


def _conformer(name: str) -> Built:
    size = {"dim": 48, "depth": 2, "dim_head": 16, "heads": 3, "conv_kernel_size": 15}
    return getattr(importlib.import_module("conformer"), name)(**size).eval(), (torch.randn(2, 40, 48),)


def _speaker(name: str) -> Built:
    model = getattr(importlib.import_module("resemblyzer.voice_encoder"), name)("cpu", verbose=False)
    return model.eval(), (torch.rand(2, 160, 40),)


def _tabnet(name: str) -> Built:
    model = getattr(importlib.import_module("pytorch_tabnet.tab_network"), name)
    return model(12, 3, n_steps=2, group_attention_matrix=torch.eye(12)).eval(), (torch.randn(4, 12),)


def _table(name: str) -> Built:
    model, settings = getattr(importlib.import_module("rtdl_revisiting_models"), name), _TABLES[name]
    if name == "FTTransformer":
        settings = model.get_default_kwargs(n_blocks=2)
        model = model(n_cont_features=8, cat_cardinalities=[4, 5], d_out=3, **settings)
        return model.eval(), (torch.randn(4, 8), torch.randint(0, 4, (4, 2)))
    return model(d_in=8, d_out=3, **settings).eval(), (torch.randn(4, 8),)


class _Forecast(nn.Module):
    """The past of series -> their next steps; the library hands over what else is known in a dict."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        nothing = dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))
        result: torch.Tensor = self.model({"insample_y": past, "insample_mask": torch.ones_like(past), **nothing})
        return result


def _forecast(name: str) -> Built:
    settings = _FORECASTS[name]
    model = getattr(importlib.import_module("neuralforecast.models"), name)(h=12, input_size=24, **settings)
    return _Forecast(model).eval(), (torch.randn(2, 24, settings.get("n_series", 1)),)


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
        ("torchreid", _persons, _PERSONS),
        ("rfdetr", _rfdetr, ("RFDETRNano", "RFDETRSegNano")),
        ("asteroid", _speech, tuple(_SPEECH)),
        ("conformer", _conformer, ("Conformer",)),
        ("resemblyzer", _speaker, ("VoiceEncoder",)),
        ("pytorch_tabnet", _tabnet, ("TabNet",)),
        ("rtdl_revisiting_models", _table, tuple(_TABLES)),
        ("neuralforecast", _forecast, tuple(_FORECASTS)),
    ):
        rows |= {f"{package}.{name}": (package, partial(make, name)) for name in names}
    return rows | {"torch_geometric.gcn": ("torch_geometric", _graph_net)}


MODELS = {name: build for name, (package, build) in _all().items() if importlib.util.find_spec(package)}
