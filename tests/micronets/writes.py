"""Values written in place, whole and in part."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import conv, head, image, pooled, tokens
from micronets.table import net


@net(image, a=conv(3, 12), b=conv(12, 12), act=nn.ReLU(inplace=True), head=head(12))
def in_place_ops(s, x):
    x = s.act(s.a(x))
    y = s.b(x)
    y += x
    return s.head(pooled(y.relu_().mul_(2)))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(8, 8), head=head(8))
def in_place_add_scaled(s, x):
    one, two, three = s.a(x), s.b(x), s.c(x)
    total = two + three
    one.add_(two, alpha=2.0)
    return s.head(pooled(s.d(total + one)))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(8, 8), head=head(8))
def written_out(s, x):
    with torch.no_grad():
        one, two, three = s.a(x), s.b(x), s.c(x)
        total = two + three
        torch.add(one, two, alpha=2.0, out=three)
    return s.head(pooled(s.d(total + three)))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def partial_write(s, x):
    x = F.relu(s.a(x))
    x[:, :2] = 0
    return s.head(pooled(s.b(x)))


@net(image, a=conv(3, 12), side=conv(3, 4), b=conv(12, 8), head=head(8))
def partial_write_of_a_tensor(s, x):
    y = s.a(x)
    y[:, 4:8] = s.side(x)
    return s.head(pooled(s.b(y)))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def view_written(s, x):
    x = s.a(x)
    part = x[:, :4]
    part.mul_(3.0)
    return s.head(pooled(s.b(x)))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def view_of_places_written(s, x):
    x = s.a(x)
    x[:, :, 0] = 0.5
    return s.head(pooled(s.b(x)))


@net(image, a=conv(3, 6), b=conv(3, 6), c=conv(12, 8), head=head(8))
def filled_buffer(s, x):
    joined = x.new_zeros(x.shape[0], 12, 8, 8)
    joined[:, :6] = s.a(x)
    joined[:, 6:] = s.b(x)
    return s.head(pooled(s.c(joined)))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def written_by_index(s, x):
    x = s.a(x)
    x[:, [1, 5]] = 2.0
    return s.head(pooled(s.b(x)))


@net(tokens, a=nn.Linear(5, 12), b=nn.Conv1d(12, 8, 3), head=head(8))
def transposed_in_place(s, x):
    x = s.a(x)
    x.transpose_(1, 2)
    return s.head(s.b(x).mean(2))
