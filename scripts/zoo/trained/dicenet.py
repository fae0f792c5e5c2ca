"""DiCENet (Mehta et al. 2020, arXiv:1906.03516), for segmentation: convolutions along channels, rows and columns."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pyramid import Active, Conv, Segmentation, Shuffle, enlarged

_NAMES = (
    [f"eff_pool_{n}x{n}" for n in (16, 32, 64, 128)],
    [f"proj_enc_{n}x{n}" for n in (32, 64, 128)],
    [f"bu_br_{n}x{n}" for n in (32, 64, 128)],
)
_WIDTHS = {0.5: (24, 24, 48, 96), 1.0: (24, 24, 116, 232)}


class Dice(nn.Module):
    """Depthwise 3 x 3 over each pair of axes, the third taken as channels; then the three are weighed (figure 3).

    ``side``: rows and columns the layer has filters for; other pictures are resized to it and back.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv_channel, self.conv_width, self.conv_height = (
            nn.Conv2d(n, n, 3, padding=1, groups=n, bias=False) for n in (width, side, side)
        )
        self.br_act = Active(3 * width)
        self.vol_shuffle = Shuffle(3)
        self.weight_avg_layer = Conv(3 * width, width, 1, groups=width)
        self.proj_layer = Conv(width, width, 3, groups=width)
        self.linear_comb_layer = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // 4, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width // 4, width, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = self.conv_height(_resized(x, self.side, width).transpose(1, 2)).transpose(1, 2)
        columns = self.conv_width(_resized(x, height, self.side).transpose(1, 3)).transpose(1, 3)
        seen = [self.conv_channel(x), _resized(rows, height, width), _resized(columns, height, width)]
        x = self.weight_avg_layer(self.vol_shuffle(self.br_act(torch.cat(seen, 1))))
        return self.proj_layer(x) * self.linear_comb_layer(x)


class Halve(nn.Module):
    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.left_layer = nn.Sequential(Conv(width, width, 3, stride=2, groups=width), Conv(width, width, 1))
        self.right_layer = nn.Sequential(nn.AvgPool2d(3, stride=2, padding=1), Dice(width, side), Conv(width, width, 1))
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(torch.cat([self.left_layer(x), self.right_layer(x)], 1))


class Half(nn.Module):
    """ShuffleNetV2's unit (Ma et al. 2018): half of the channels pass, the others go through a layer."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.left = round(0.5 * inputs)
        new = outputs - self.left
        self.layer_right = nn.Sequential(Conv(inputs - self.left, new, 1), Dice(new, side))
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[:, : self.left], x[:, self.left :]
        return self.shuffle(torch.cat([left, self.layer_right(right)], 1))


class Encoder(nn.Module):
    """Maps at strides 2, 4, 8 and 16."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.level1 = Conv(3, first, 3, stride=2)
        self.level3 = _stage(second, third, 28, 3)
        self.level4 = _stage(third, fourth, 14, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = self.level1(x)
        second = F.max_pool2d(first, 3, stride=2, padding=1)
        third = self.level3(second)
        return first, second, third, self.level4(third)


def _stage(inputs: int, outputs: int, side: int, units: int) -> nn.Sequential:
    widths = [2 * inputs, *[outputs] * units]
    return nn.Sequential(Halve(inputs, side), *(Half(a, b, side) for a, b in itertools.pairwise(widths)))


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    """One of height and width differs at most: enlarged linearly, or averaged."""
    if x.shape[2:] == (height, width):
        return x
    if x.shape[2] < height or x.shape[3] < width:
        return enlarged(x, [height, width])
    return F.adaptive_avg_pool2d(x, (height, width))


def dicenet(scale: float) -> Segmentation:
    """Colours normalised as for ImageNet; ``scale`` 0.5 or 1."""
    return Segmentation(Encoder(_WIDTHS[scale]), _WIDTHS[scale], _NAMES)
