"""UltraFace: SSD (Liu et al. 2016) on depthwise separable layers; RFB adds a receptive field block (Liu 2018)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SOURCES = (8, 11, 13)
"""Layers of the base net after which anchors look at the maps; the last ones look at the extra layer."""
_ANCHORS = (3, 2, 2, 3)


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def head(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1)
    )


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int = 1, dilation: int = 1, *, active: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2 * dilation, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.active else x


class ReceptiveField(nn.Module):
    """Three branches that look ever wider, side by side, and a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(Conv(64, 8), Conv(8, 16, 3, active=True), Conv(16, 16, 3, 2))
        self.branch1 = nn.Sequential(Conv(64, 8), Conv(8, 16, 3, active=True), Conv(16, 16, 3, 3))
        self.branch2 = nn.Sequential(
            Conv(64, 8), Conv(8, 12, 3, active=True), Conv(12, 16, 3, active=True), Conv(16, 16, 3, 5)
        )
        self.ConvLinear = Conv(48, 64)
        self.shortcut = Conv(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.ConvLinear(torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1))
        return F.relu(wide + self.shortcut(x))


class UltraFace(nn.Module):
    """(N, 3, 240, 320) in [-1, 1] -> probabilities (N, 4420, 2), box offsets (N, 4420, 4)."""

    def __init__(self, *, receptive_field: bool) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.base_net = nn.Sequential(
            first,
            separable(16, 32),
            separable(32, 32, 2),
            separable(32, 32),
            separable(32, 64, 2),
            separable(64, 64),
            separable(64, 64),
            ReceptiveField() if receptive_field else separable(64, 64),
            separable(64, 128, 2),
            separable(128, 128),
            separable(128, 128),
            separable(128, 256, 2),
            separable(256, 256),
        )
        self.extras = nn.ModuleList([nn.Sequential(nn.Conv2d(256, 64, 1), nn.ReLU(), head(64, 256, 2), nn.ReLU())])
        self.classification_headers = _heads(2)
        self.regression_headers = _heads(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        for number, layer in enumerate(self.base_net, 1):
            x = layer(x)
            if number in _SOURCES:
                maps.append(x)
        maps.append(self.extras[0](x))
        return _rows(self.classification_headers, maps, 2).softmax(2), _rows(self.regression_headers, maps, 4)


def _heads(size: int) -> nn.ModuleList:
    near = [head(width, n * size) for width, n in zip((64, 128, 256), _ANCHORS, strict=False)]
    return nn.ModuleList([*near, nn.Conv2d(256, _ANCHORS[-1] * size, 3, padding=1)])


def _rows(heads: Iterable[nn.Module], maps: list[Tensor], size: int) -> Tensor:
    """``size`` numbers an anchor, maps one after another."""
    rows = [h(m).permute(0, 2, 3, 1).contiguous() for h, m in zip(heads, maps, strict=True)]
    return torch.cat([r.view(r.size(0), -1, size) for r in rows], 1)
