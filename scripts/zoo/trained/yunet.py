"""YuNet (Wu, Peng and Yu 2023, Machine Intelligence Research 20): a face detector of 76 thousand parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_OUTPUTS = {"cls": 1, "bbox": 4, "obj": 1, "kps": 10}


class Unit(nn.Module):
    """1 x 1 over channels, then depthwise 3 x 3: the other way round than MobileNet, with one activation."""

    def __init__(self, inputs: int, outputs: int, *, active: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)
        self.bn = nn.BatchNorm2d(outputs) if active else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        return x if self.bn is None else F.relu(self.bn(x))


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.conv2 = Unit(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn1(self.conv1(x))))


class Pair(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Unit(inputs, inputs), Unit(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Backbone(nn.Module):
    """Maps at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.model0, self.model1 = Stem(), Pair(16, 64)
        self.model2, self.model3, self.model4, self.model5 = (Pair(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.model2(self.model1(F.max_pool2d(self.model0(x), 2)))
        fine = self.model3(F.max_pool2d(x, 2))
        middle = self.model4(F.max_pool2d(fine, 2))
        return [fine, middle, self.model5(F.max_pool2d(middle, 2))]


class Neck(nn.Module):
    """Each map is added, enlarged, to the finer one before its own layer (a pyramid without projections)."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(Unit(64, 64) for _ in range(3))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        coarse = self.lateral_convs[2](maps[2])
        middle = self.lateral_convs[1](maps[1] + F.interpolate(coarse, scale_factor=2.0))
        return [self.lateral_convs[0](maps[0] + F.interpolate(middle, scale_factor=2.0)), middle, coarse]


class Head(nn.Module):
    """One place, one anchor: class, box, objectness and five points from a layer all four share."""

    def __init__(self) -> None:
        super().__init__()
        self.multi_level_share_convs = nn.ModuleList(nn.Sequential(Unit(64, 64)) for _ in range(3))
        for name, size in _OUTPUTS.items():
            units = nn.ModuleList(Unit(64, size, active=False) for _ in range(3))
            self.add_module(f"multi_level_{name}", units)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        found = {}
        for level, share in enumerate(self.multi_level_share_convs):
            shared = share(maps[level])
            for name, size in _OUTPUTS.items():
                rows = self.get_submodule(f"multi_level_{name}.{level}")(shared)
                rows = rows.permute(0, 2, 3, 1).reshape(rows.shape[0], -1, size)
                found[f"{name}_{8 << level}"] = rows.sigmoid() if size == 1 else rows
        return found


class YuNet(nn.Module):
    """(N, 3, H, W) blue, green, red from 0 to 255 -> ``{"cls_8": (N, H * W / 64, 1), ..., "kps_32": ...}``."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = Backbone(), Neck(), Head()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.bbox_head(self.neck(self.backbone(x)))
