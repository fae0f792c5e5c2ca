"""Transposed, depthwise and grouped convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import block, conv, head, image, pooled, signal
from micronets.table import net


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 8, 2, 2), bn=nn.BatchNorm2d(8), head=head(8))
def transposed(s, x):
    return s.head(pooled(F.relu(s.bn(s.up(s.a(x))))))


@net(image, a=nn.ConvTranspose2d(3, 12, 3, padding=1), b=nn.ConvTranspose2d(12, 12, 3, padding=1), head=head(12))
def transposed_chain(s, x):
    return s.head(pooled(s.b(s.a(x))))


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 8, 2, 2, groups=2), head=head(8))
def transposed_grouped(s, x):
    return s.head(pooled(F.relu(s.up(F.relu(s.a(x))))))


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 24, 2, 2, groups=6), head=head(24))
def transposed_many_groups(s, x):
    return s.head(pooled(F.relu(s.up(F.relu(s.a(x))))))


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 12, 2, 2, groups=12), head=head(12))
def transposed_depthwise(s, x):
    return s.head(pooled(F.relu(s.up(F.relu(s.a(x))))))


@net(image, a=block(3, 12), dw=block(12, 12, groups=12), pw=block(12, 8, kernel=1), head=head(8))
def depthwise(s, x):
    return s.head(pooled(s.pw(s.dw(s.a(x)))))


@net(image, a=block(3, 8), dw=block(8, 16, groups=8), pw=block(16, 8, kernel=1), head=head(8))
def depthwise_multiplier(s, x):
    return s.head(pooled(s.pw(s.dw(s.a(x)))))


@net(image, dw=conv(3, 12, groups=3), pw=block(12, 8, kernel=1), head=head(8))
def depthwise_of_the_input(s, x):
    return s.head(pooled(s.pw(F.relu(s.dw(x)))))


@net(image, stem=block(3, 8), expand=block(8, 24, kernel=1), dw=block(24, 24, groups=24),
     project=conv(24, 8, kernel=1), head=head(8))  # fmt: skip
def inverted_residual(s, x):
    x = s.stem(x)
    return s.head(pooled(x + s.project(s.dw(s.expand(x)))))


@net(
    image,
    a=block(3, 12),
    route=nn.Linear(12, 3),
    experts=nn.Parameter(torch.randn(3, 12 * 9) / 3),
    b=block(12, 8, kernel=1),
    zeroed="all",
    head=head(8),
)
def filters_of_each_sample(s, x):
    x = torch.relu(s.a(x))
    filters = (torch.sigmoid(s.route(pooled(x))) @ s.experts).view(-1, 1, 3, 3)
    n, _, *size = x.shape
    y = F.conv2d(x.reshape(1, -1, *size), filters, padding=1, groups=n * 12)
    return s.head(pooled(s.b(torch.relu(y.reshape(n, 12, *size)))))


@net(image, a=block(3, 12), g=block(12, 12, groups=2), b=conv(12, 8), head=head(8))
def grouped_few(s, x):
    return s.head(pooled(s.b(s.g(s.a(x)))))


@net(image, a=block(3, 12), g=block(12, 12, groups=6), b=conv(12, 8), head=head(8))
def grouped_many(s, x):
    return s.head(pooled(s.b(s.g(s.a(x)))))


@net(image, free=0.7, pinned="cumsum", a=block(3, 12), g=block(12, 24, groups=6), b=conv(24, 8), head=head(8))
def grouped_behind_fixed(s, x):
    """No whole group can go, as what goes in is fixed; the same place of every group can."""
    x = s.a(x)
    return s.head(pooled(s.b(s.g(x)))) + x.cumsum(1).mean((1, 2, 3))[:, None]


@net(image, a=block(3, 8), g=block(8, 16, groups=4), b=conv(16, 8), head=head(8))
def grouped_widening(s, x):
    return s.head(pooled(s.b(s.g(s.a(x)))))


@net(image, a=block(3, 12), g=conv(12, 12, groups=3), b=conv(12, 12), head=head(12))
def grouped_residual(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(F.relu(x + s.g(x)))))


@net(signal, a=nn.Conv1d(3, 12, 1), dw=nn.Conv1d(12, 12, 3, groups=12, padding=1), head=head(12))
def depthwise_1d(s, x):
    return s.head(F.silu(s.dw(s.a(x))).mean(2))
