"""ESPNetv2 (Mehta et al. 2019, arXiv:1811.11431), for segmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pyramid import Segmentation

_BRANCHES = 4
_NAMES = (
    [f"bu_dec_l{n}" for n in (1, 2, 3, 4)],
    [f"merge_enc_dec_l{n}" for n in (2, 3, 4)],
    [f"bu_br_l{n}" for n in (2, 3, 4)],
)


class Conv(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        *,
        normed: bool = True,
        active: bool = True,
    ) -> None:
        super().__init__()
        around = size // 2 * dilation
        self.conv = nn.Conv2d(inputs, outputs, size, stride, around, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs) if normed else nn.Identity()
        self.act = nn.PReLU(outputs) if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Joined(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn, self.act = nn.BatchNorm2d(width), nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


class Eesp(nn.Module):
    """Depthwise layers of growing dilation; each adds what the one before found (section 3.1, figure 1c).

    ``widest``: the largest neighbourhood in pixels; branches that would see more see 3 x 3.
    """

    def __init__(self, inputs: int, outputs: int, widest: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        width = outputs // _BRANCHES
        seen = sorted(size if size <= widest else 3 for size in range(3, 3 + 2 * _BRANCHES, 2))
        self.proj_1x1 = Conv(inputs, width, 1, groups=_BRANCHES)
        self.spp_dw = nn.ModuleList(
            Conv(width, width, 3, stride, width, (size - 1) // 2, normed=False, active=False) for size in seen
        )
        self.br_after_cat = Joined(outputs)
        self.conv_1x1_exp = Conv(outputs, outputs, 1, groups=_BRANCHES, active=False)
        self.module_act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.proj_1x1(x)
        sums = [self.spp_dw[0](narrow)]
        for layer in self.spp_dw[1:]:
            sums.append(layer(narrow) + sums[-1])
        found = self.conv_1x1_exp(self.br_after_cat(torch.cat(sums, 1)))
        return found if self.stride == 2 else self.module_act(found + x)


class Halve(nn.Module):
    """The averaged input beside new channels, and a shortcut from the picture itself (section 3.2, figure 2)."""

    def __init__(self, inputs: int, outputs: int, widest: int) -> None:
        super().__init__()
        self.eesp = Eesp(inputs, outputs - inputs, widest, stride=2)
        self.inp_reinf = nn.Sequential(Conv(3, 3, 3), Conv(3, outputs, 1, active=False))
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor, picture: Tensor) -> Tensor:
        found = torch.cat([_averaged(x), self.eesp(x)], 1)
        while picture.shape[2] > found.shape[2]:
            picture = _averaged(picture)
        return self.act(found + self.inp_reinf(picture))


class Encoder(nn.Module):
    """Maps at strides 2, 4, 8 and 16."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.level1 = Conv(3, first, 3, stride=2)
        self.level2_0 = Halve(first, second, 13)
        self.level3_0 = Halve(second, third, 11)
        self.level3 = nn.Sequential(*(Eesp(third, third, 9) for _ in range(3)))
        self.level4_0 = Halve(third, fourth, 9)
        self.level4 = nn.Sequential(*(Eesp(fourth, fourth, 7) for _ in range(7)))

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = self.level1(picture)
        second = self.level2_0(first, picture)
        third = self.level3(self.level3_0(second, picture))
        return first, second, third, self.level4(self.level4_0(third, picture))


def espnetv2(scale: float) -> Segmentation:
    """Colours normalised as for ImageNet; ``scale`` of the widths, 0.5 or 1."""
    first, second, third, fourth = (int(width * scale) for width in (32, 64, 128, 256))
    widths = first, second, third, fourth
    return Segmentation(Encoder(widths), widths, _NAMES)


def _averaged(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=2, padding=1)
