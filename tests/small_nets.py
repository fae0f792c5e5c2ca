"""Small networks that several test modules use; ``--arch small_nets.py:NAME`` builds them too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = "1x3x16x16"

RECIPE = """
[source]
path = "in.pt"
arch = "small_nets:Residual"
inputs = "1x3x16x16"
[budget]
multiple_of = 1
[measuring]
bench = false
[outputs]
onnx = "out.onnx"
report = "report.json"
"""
"""Of ``Residual``, whose weights lie beside it."""


class Residual(nn.Module):
    """A ResNet in small: widths 16 and 24, a plain and a projected shortcut; (N, 3, 16, 16) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block1 = Block(16, 16)
        self.block2 = Block(16, 24)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(F.relu(self.bn(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class HardCoded(nn.Module):
    """Writes the flattened size down, so that its own forward does not fit a smaller one; widths 8, 16, 24."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc1 = nn.Linear(16 * 4 * 4, 24)
        self.fc2 = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(-1, 16 * 4 * 4))))


class OnlyOutputs(nn.Module):
    """Every channel is an output: nothing can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this forward is not finished")


class NotInOnnx(nn.Module):
    """ONNX has no matrix exponential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(self.head(self.conv(x).mean((2, 3))).view(-1, 3, 3))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode, with weights and BatchNorm statistics that differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
        for name, tensor in model.named_buffers():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if name.endswith("running_var") else noise - 0.5)
    return model.eval()


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def error(reference: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value of ``reference``."""
    assert reference.shape == other.shape
    return float((reference - other).abs().max() / reference.abs().max())
