"""Norms, as modules and by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import conv, head, image, pooled, tokens, vector, weight
from micronets.table import net


@net(image, zeroed="", a=conv(3, 12), norm=nn.GroupNorm(1, 12), b=conv(12, 8), head=head(8))
def group_norm_one(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, a=conv(3, 12), norm=nn.GroupNorm(12, 12), b=conv(12, 8), head=head(8))
def group_norm_each(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, zeroed="", a=conv(3, 16), norm=nn.GroupNorm(4, 16), b=conv(16, 8), head=head(8))
def group_norm_between(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, zeroed="", a=conv(3, 16), norm=nn.GroupNorm(8, 16, affine=False), b=conv(16, 16), head=head(16))
def group_norm_many(s, x):
    x = s.norm(s.a(x))
    return s.head(pooled(x + F.relu(s.b(x))))


@net(image, a=conv(3, 12), norm=nn.InstanceNorm2d(12, affine=True, track_running_stats=True), b=conv(12, 8),
     head=head(8))  # fmt: skip
def instance_norm_running(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, a=conv(3, 12), one=nn.InstanceNorm2d(12, affine=True), b=conv(12, 8), two=nn.InstanceNorm2d(8),
     c=conv(8, 8), head=head(8))  # fmt: skip
def instance_norm(s, x):
    return s.head(pooled(s.c(F.relu(s.two(s.b(F.relu(s.one(s.a(x)))))))))


@net(tokens, zeroed="", a=nn.Linear(5, 16), norm=nn.LayerNorm(16), b=nn.Linear(16, 12), head=head(12))
def layer_norm(s, x):
    return s.head(F.gelu(s.b(s.norm(s.a(x))))).mean(1)


@net(tokens, zeroed="", a=nn.Linear(5, 16), norm=nn.LayerNorm(16, elementwise_affine=False), head=head(16))
def layer_norm_plain(s, x):
    return s.head(s.norm(s.a(x))).mean(1)


@net(tokens, zeroed="", a=nn.Linear(5, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 16), n1=nn.LayerNorm(16),
     n2=nn.LayerNorm(16), head=head(16))  # fmt: skip
def layer_norm_residuals(s, x):
    x = s.a(x)
    x = x + F.relu(s.n1(s.b(x)))
    return s.head(x + F.relu(s.n2(s.c(x)))).mean(1)


@net(image, zeroed="", a=conv(3, 12), norm=nn.LayerNorm(12), b=conv(12, 8), head=head(8))
def layer_norm_channels_first(s, x):
    x = s.norm(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return s.head(pooled(s.b(x)))


@net(image, zeroed="", a=conv(3, 12), norm=nn.LayerNorm([12, 8, 8]), b=conv(12, 8), head=head(8))
def layer_norm_whole_image(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(tokens, zeroed="", a=nn.Linear(5, 16), norm=nn.RMSNorm(16), b=nn.Linear(16, 12), head=head(12))
def rms_norm(s, x):
    return s.head(F.gelu(s.b(s.norm(s.a(x))))).mean(1)


@net(tokens, zeroed="", a=nn.Linear(5, 16), scale=weight(16), b=nn.Linear(16, 12), head=head(12))
def rms_norm_by_hand(s, x):
    x = s.a(x)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * s.scale
    return s.head(F.gelu(s.b(x))).mean(1)


@net(image, zeroed="", a=conv(3, 12), scale=weight(12), shift=weight(12), b=conv(12, 8), head=head(8))
def layer_norm_by_hand(s, x):
    x = s.a(x)
    mean = x.mean(1, keepdim=True)
    var = (x - mean).pow(2).mean(1, keepdim=True)
    x = s.scale[:, None, None] * ((x - mean) / torch.sqrt(var + 1e-6)) + s.shift[:, None, None]
    return s.head(pooled(s.b(x)))


@net(vector, zeroed="", a=nn.Linear(10, 16), scale=weight(16), b=nn.Linear(16, 16), head=head(16))
def norm_by_sum_of_squares(s, x):
    x = F.relu(s.a(x))
    x = torch.div(x, x.pow(2).sum(dim=1, keepdim=True).sqrt())
    return s.head(s.b(x * s.scale))


@net(tokens, zeroed="", a=nn.Linear(5, 12), grow=weight(1, 1, 12), head=head(12))
def global_response_norm(s, x):
    x = F.gelu(s.a(x))
    size = x.norm(p=2, dim=1, keepdim=True)
    return s.head(x + s.grow * (x * (size / (size.mean(-1, keepdim=True) + 1e-6)))).mean(1)
