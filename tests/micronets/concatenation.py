"""Values joined along channels, places or the batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import block, conv, head, image, pooled, tokens
from micronets.table import net


@net(image, a=conv(3, 8), b=conv(3, 12), c=block(20, 8), head=head(8))
def cat_channels(s, x):
    return s.head(pooled(s.c(torch.cat([F.relu(s.a(x)), s.b(x)], 1))))


@net(image, a=conv(3, 8), b=conv(3, 12), c=block(20, 8), head=head(8))
def cat_minus_three(s, x):
    return s.head(pooled(s.c(torch.cat([F.relu(s.a(x)), s.b(x)], dim=-3))))


@net(image, a=conv(3, 12), b=conv(3, 12), c=block(12, 8), head=head(8))
def cat_rows(s, x):
    return s.head(pooled(s.c(torch.cat([s.a(x), s.b(x)], dim=2))))


@net(image, a=conv(3, 12), b=conv(12, 12), c=conv(12, 8), d=conv(8, 8), head=head(8))
def cat_rows_then_split(s, x):
    one, two = s.a(x), s.b(F.relu(s.a(x)))
    first, _ = torch.split(s.c(torch.cat([one, two], 2)), [one.shape[2], two.shape[2]], dim=2)
    return s.head(pooled(s.d(first)))


@net(tokens, a=nn.Linear(5, 8), b=nn.Linear(5, 12), head=head(20))
def cat_features(s, x):
    return s.head(torch.cat([s.a(x), s.b(x).tanh()], dim=-1)).mean(1)


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(8, 12), head=head(12))
def cat_batch(s, x):
    return s.head(pooled(s.c(torch.cat([s.a(x), s.b(x)]))))


@net(image, a=conv(3, 8), b=conv(24, 8), head=head(8))
def cat_repeated(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.cat([x, F.relu(x), x], 1))))


@net(image, a=conv(3, 8), b=conv(14, 8), head=head(8))
def cat_with_the_input(s, x):
    return s.head(pooled(s.b(torch.cat([x, s.a(x), torch.ones_like(x)], 1))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(24, 8), head=head(8))
def cat_of_cats(s, x):
    inner = torch.cat([s.a(x), s.b(x)], 1)
    return s.head(pooled(s.d(torch.cat([s.c(x), inner], 1))))


@net(image, a=block(3, 4), b=conv(3, 8), c=conv(3, 12), d=conv(12, 8), head=head(8))
def cat_plus_conv(s, x):
    return s.head(pooled(s.d(s.c(x) + torch.cat([s.a(x), s.b(x)], 1))))


@net(image, a=conv(3, 4), b=conv(3, 8), c=conv(3, 8), d=conv(3, 4), e=conv(12, 8), head=head(8))
def cat_plus_other_cat(s, x):
    one, two = torch.cat([s.a(x), s.b(x)], 1), torch.cat([s.c(x), s.d(x)], 1)
    return s.head(pooled(s.e(one + F.relu(two))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(16, 8), e=conv(16, 8), head=head(8))
def cat_shares_a_part(s, x):
    one = s.d(torch.cat([s.a(x), s.b(x)], 1))
    two = s.e(torch.cat([s.c(x), F.relu(s.a(x))], 1))
    return s.head(pooled(one + two))


@net(image, stem=conv(3, 8), bn1=nn.BatchNorm2d(8), a=conv(8, 6), bn2=nn.BatchNorm2d(14), b=conv(14, 6),
     bn3=nn.BatchNorm2d(20), head=head(20))  # fmt: skip
def dense_block(s, x):
    x = s.stem(x)
    x = torch.cat([x, s.a(F.relu(s.bn1(x)))], 1)
    x = torch.cat([x, s.b(F.relu(s.bn2(x)))], 1)
    return s.head(pooled(F.relu(s.bn3(x))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=nn.Conv1d(16, 8, 3), head=head(8))
def cat_of_means(s, x):
    x = torch.cat([s.a(x).mean(dim=(2,)), torch.mean(s.b(x), 3)], dim=1)
    return s.head(s.c(x).mean(2))
