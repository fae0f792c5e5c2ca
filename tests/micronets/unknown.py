"""Operators without a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from micronets.layers import conv, head, image, pooled, vector
from micronets.table import net


@torch.library.custom_op("micronets::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@net(image, 0.4, pinned="micronets.cube", a=conv(3, 12), b=conv(12, 8), head=head(8))
def custom_op(s, x):
    x = torch.tanh(s.a(x))
    x = cube(x)  # the op without a row
    return s.head(pooled(s.b(x)))


@net(image, 0.4, pinned="aten.histc", a=conv(3, 12), b=conv(3, 8), head=head(8))
def histogram(s, x):
    counts = torch.histc(s.a(x), bins=5, min=-1, max=1)  # the op without a row
    return s.head(pooled(s.b(x))), counts


@net(vector, 0.4, pinned="aten.fft", a=nn.Linear(10, 12), b=nn.Linear(12, 8), head=head(8))
def fourier(s, x):
    x = torch.fft.fft(s.a(x)).real  # the op without a row
    return s.head(s.b(x))


@net(vector, 0.4, pinned="aten.linalg_matrix_exp", a=nn.Linear(10, 9), b=nn.Linear(9, 8), head=head(8))
def matrix_exponential(s, x):
    x = torch.linalg.matrix_exp(s.a(x).view(-1, 3, 3) / 3)  # the op without a row
    return s.head(s.b(x.flatten(1)))
