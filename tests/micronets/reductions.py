"""Reductions and comparisons over channels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import conv, head, image, pooled, tokens, vector
from micronets.table import net


@net(image, zeroed="", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_mean(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) * x.mean(1, keepdim=True)))


@net(image, 0.4, zeroed="", a=conv(3, 3), b=conv(3, 8), head=head(8))
def spread_of_few_channels(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x / (x.std(1, keepdim=True) + 0.1))))


@net(image, 0.9, a=conv(3, 12), b=conv(12, 8), head=head(1))
def a_mean_that_is_zero(s, x):
    x = s.b(F.relu(s.a(x)))[:, :1]
    x = F.layer_norm(x, x.shape[1:]).mean((2, 3), keepdim=True)  # nothing but rounding
    return s.head((x - 0.25 * x).mean((2, 3)))


@net(image, a=conv(3, 12), b=conv(12, 8))
def shuffled_outputs(s, x):
    x = s.b(F.relu(s.a(x)))
    return x.view(-1, 4, 2, *x.shape[2:]).transpose(1, 2).reshape(-1, 8, *x.shape[2:])


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def spread_of_one_channel(s, x):
    x[:, :1].std(1)  # no number in the dense net either, and nobody reads it
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="all", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_sum(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) * torch.tanh(x.sum(1, keepdim=True))))


@net(image, a=conv(3, 4), b=conv(3, 4), c=conv(3, 8), d=conv(8, 4))
def sum_of_everything(s, x):
    total = torch.sum(s.b(x))
    return s.d(s.c(x)) + s.a(x) * 0 + total


@net(image, zeroed="all", a=conv(3, 12), head=nn.Linear(64, 5))
def channel_max(s, x):
    return s.head(s.a(x).max(1).values.flatten(1))


@net(image, zeroed="all", a=conv(3, 12), head=nn.Linear(64, 5))
def channel_amax(s, x):
    return s.head(s.a(x).amax(1).flatten(1))


@net(image, 0.4, pinned="aten.softmax", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_softmax(s, x):
    return s.head(pooled(s.b(s.a(x).softmax(1))))


@net(image, 0.4, pinned="aten.cumsum", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_cumsum(s, x):
    return s.head(pooled(s.b(s.a(x).cumsum(1))))


@net(image, 0.4, pinned="aten.topk", a=conv(3, 12), b=conv(4, 8), head=head(8))
def channel_topk(s, x):
    return s.head(pooled(s.b(s.a(x).topk(4, dim=1).values)))


@net(image, 0.0, pinned="aten.argmax", a=conv(3, 12))
def channel_argmax(s, x):
    return s.a(x).argmax(1)


@net(image, zeroed="", a=conv(3, 12), b=conv(12, 8), head=head(8))
def normalized_over_channels(s, x):
    return s.head(pooled(s.b(F.normalize(s.a(x), dim=1))))


@net(vector, zeroed="", a=nn.Linear(10, 12), b=nn.Linear(10, 12))
def cosine(s, x):
    return F.cosine_similarity(s.a(x), s.b(x), dim=1)


@net(image, 0.4, a=conv(3, 12), lrn=nn.LocalResponseNorm(3), b=conv(12, 8), head=head(8))
def local_response_norm(s, x):
    return s.head(pooled(s.b(s.lrn(s.a(x)))))


@net(tokens, 0.0, pinned="aten.avg_pool", a=nn.Linear(5, 8), pool=nn.AvgPool2d(2), head=head(4))
def pooled_over_features(s, x):
    return s.head(s.pool(s.a(x)[:, None])[:, 0]).mean(1)
