"""RetinaFace (Deng et al. 2020, arXiv:1905.00641) on a quarter-width MobileNet (Howard et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAK = 0.1


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, *, active: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.LeakyReLU(_LEAK)] if active else []))


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(_LEAK),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(_LEAK),
    )


class Body(nn.Module):
    """Maps of 64, 128 and 256 channels at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv(3, 8, stride=2),
            separable(8, 16),
            separable(16, 32, 2),
            separable(32, 32),
            separable(32, 64, 2),
            separable(64, 64),
        )
        self.stage2 = nn.Sequential(separable(64, 128, 2), *(separable(128, 128) for _ in range(5)))
        self.stage3 = nn.Sequential(separable(128, 256, 2), separable(256, 256))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return fine, middle, self.stage3(middle)


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al. 2017): coarse maps, enlarged, are added to finer ones."""

    def __init__(self) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (conv(width, 64, 1) for width in (64, 128, 256))
        self.merge1, self.merge2 = conv(64, 64), conv(64, 64)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:]))
        return self.merge1(fine + F.interpolate(middle, size=fine.shape[2:])), middle, coarse


class Context(nn.Module):
    """SSH (Najibi et al. 2017): neighbourhoods of 3, 5 and 7 pixels from stacked 3 x 3, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3X3 = conv(64, 32, active=False)
        self.conv5X5_1, self.conv5X5_2 = conv(64, 16), conv(16, 16, active=False)
        self.conv7X7_2, self.conv7x7_3 = conv(16, 16), conv(16, 16, active=False)

    def forward(self, x: Tensor) -> Tensor:
        half = self.conv5X5_1(x)
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(half), self.conv7x7_3(self.conv7X7_2(half))], 1))


class Head(nn.Module):
    """Two anchors at each place, ``size`` numbers an anchor: (N, 64, H, W) -> (N, H * W * 2, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv1x1 = nn.Conv2d(64, 2 * size, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x).permute(0, 2, 3, 1).contiguous()
        return x.view(x.shape[0], -1, self.size)


class RetinaFace(nn.Module):
    """(N, 3, H, W) blue, green, red less their means -> boxes (N, A, 4), faces (N, A, 2), points (N, A, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fpn = Body(), Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()
        self.ClassHead, self.BboxHead, self.LandmarkHead = (
            nn.ModuleList(Head(size) for _ in range(3)) for size in (2, 4, 10)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = [ssh(m) for ssh, m in zip((self.ssh1, self.ssh2, self.ssh3), self.fpn(self.body(x)), strict=True)]
        boxes, faces, points = (
            torch.cat([head(m) for head, m in zip(heads, maps, strict=True)], 1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return boxes, faces.softmax(-1), points
