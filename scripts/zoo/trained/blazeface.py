"""BlazeFace (Bazarevsky et al. 2019, arXiv:1907.05047): single-shot face detection at 128 x 128."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTHS = (24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88)
"""Channels before the first block of the backbone and after each of its eleven."""
_HALVING = (32, 48)
"""Blocks that end with these widths halve the picture."""


class Block(nn.Module):
    """Depthwise 3 x 3 and a shortcut that pads the channels it lacks with zeros (figure 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.missing = outputs - inputs
        self.convs = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, padding=2 - stride, groups=inputs),
            nn.Conv2d(inputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride == 2:  # the frame of zeros lies to the right and below
            x = F.pad(x, (0, 2, 0, 2))
            shortcut = F.max_pool2d(shortcut, 2)
        if self.missing:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.missing))
        return F.relu(self.convs(x) + shortcut)


class BlazeFace(nn.Module):
    """(N, 3, 128, 128) in [-1, 1] -> boxes with six points (N, 896, 16) in pixels, logits (N, 896, 1)."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block(a, b, 2 if b in _HALVING else 1) for a, b in itertools.pairwise(_WIDTHS)]
        self.backbone1 = nn.Sequential(nn.Conv2d(3, 24, 5, stride=2), nn.ReLU(), *blocks)
        self.backbone2 = nn.Sequential(Block(88, 96, 2), *(Block(96, 96) for _ in range(4)))
        self.classifier_8, self.regressor_8 = nn.Conv2d(88, 2, 1), nn.Conv2d(88, 2 * 16, 1)
        self.classifier_16, self.regressor_16 = nn.Conv2d(96, 6, 1), nn.Conv2d(96, 6 * 16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.backbone1(F.pad(x, (1, 2, 1, 2)))
        coarse = self.backbone2(fine)
        boxes = [_rows(self.regressor_8(fine), 16), _rows(self.regressor_16(coarse), 16)]
        logits = [_rows(self.classifier_8(fine), 1), _rows(self.classifier_16(coarse), 1)]
        return torch.cat(boxes, 1), torch.cat(logits, 1)


def _rows(maps: Tensor, size: int) -> Tensor:
    """(N, A * size, H, W) -> (N, H * W * A, size): one row an anchor."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, size)
