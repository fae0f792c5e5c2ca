"""The decoder of the EdgeNets segmentation models (Mehta et al., arXiv:1811.11431 and arXiv:1906.03516)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 21
_WIDTHS = (64, 48, 32, CLASSES)
"""Channels after each of the four pools, from the coarsest map to the finest."""
_NARROW = 10
_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
_SMALLEST = 5


class Conv(nn.Module):
    """Convolution, BatchNorm, PReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.cbr = nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False), *active(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cbr(x)


class Active(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.br = nn.Sequential(*active(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.br(x)


class Shuffle(nn.Module):
    """Channel shuffle (Zhang et al. 2018): the first channel of every group, then the second of every group, ..."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        x = x.view(n, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).contiguous().view(n, -1, height, width)


class Pool(nn.Module):
    """Depthwise layers that see the map at five sizes; merged channel by channel."""

    def __init__(self, inputs: int, outputs: int, *, last: bool = False) -> None:
        super().__init__()
        every = _NARROW * len(_SCALES)
        self.projection_layer = Conv(inputs, _NARROW, 1)
        self.stages = nn.ModuleList(
            nn.Conv2d(_NARROW, _NARROW, 3, padding=1, groups=_NARROW, bias=False) for _ in _SCALES
        )
        self.merge_layer = nn.Sequential(
            Active(every),
            Shuffle(len(_SCALES)),
            Conv(every, _NARROW, 3, groups=_NARROW),
            nn.Conv2d(_NARROW, outputs, 1, bias=last),
        )
        self.br = nn.Identity() if last else Active(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection_layer(x)
        seen = [self._at(x, stage, scale) for stage, scale in zip(self.stages, _SCALES, strict=True)]
        return self.br(self.merge_layer(torch.cat(seen, 1)))

    def _at(self, x: Tensor, stage: nn.Module, scale: float) -> Tensor:
        size = x.shape[2:]
        scaled = [max(math.ceil(n * scale), _SMALLEST) for n in size]
        if scale < 1:
            return enlarged(stage(F.adaptive_avg_pool2d(x, scaled)), size)
        if scale > 1:
            return F.adaptive_avg_pool2d(stage(enlarged(x, scaled)), size)
        return stage(x)


class Gate(nn.Module):
    """A grouped convolution whose channels are weighed by the mean of the whole map (Hu et al. 2018)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1, bias=False), nn.Sigmoid())
        self.expansion_layer = Conv(inputs, outputs, 3, groups=math.gcd(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.expansion_layer(x) * self.wt_layer(x)


class Segmentation(nn.Module):
    """(N, 3, 256, 256) -> logits (N, 21, 256, 256). ``names``: what the stored weights call pools, gates and norms."""

    def __init__(self, encoder: nn.Module, widths: tuple[int, ...], names: tuple[list[str], ...]) -> None:
        super().__init__()
        self.base_net = encoder
        self.names = names
        pools, gates, norms = names
        for number, (name, inputs) in enumerate(zip(pools, (widths[3], *_WIDTHS), strict=False)):
            self.add_module(name, Pool(inputs, _WIDTHS[number], last=number == 3))
        for name, norm, inputs, outputs in zip(gates, norms, widths[2::-1], _WIDTHS, strict=False):
            self.add_module(name, Gate(inputs, outputs))
            self.add_module(norm, nn.Sequential(*active(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        pools, gates, norms = ([self.get_submodule(name) for name in part] for part in self.names)
        *finer, coarsest = self.base_net(x)
        found = pools[0](coarsest)
        for pool, gate, norm, seen in zip(pools[1:], gates, norms, reversed(finer), strict=True):
            found = pool(norm(gate(seen) + enlarged(found, scale=2.0)))
        return enlarged(found, x.shape[2:])


def active(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.PReLU(width)


def enlarged(x: Tensor, size: list[int] | torch.Size | None = None, scale: float | None = None) -> Tensor:
    return F.interpolate(x, size, scale, mode="bilinear", align_corners=True)
