"""Channels taken apart: chunks, slices, indices."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from micronets.layers import block, conv, head, image, pooled
from micronets.table import net


@net(image, a=block(3, 16), b=conv(4, 8), c=conv(12, 8), head=head(8))
def split_4_12(s, x):
    one, two = torch.split(s.a(x), [4, 12], dim=1)
    return s.head(pooled(s.b(one) + s.c(two)))


@net(image, a=block(3, 16), b=conv(8, 8), c=conv(8, 8), head=head(8))
def chunk_in_two(s, x):
    one, two = s.a(x).chunk(2, 1)
    return s.head(pooled(s.b(one) + s.c(two)))


@net(image, a=block(3, 13), b=conv(5, 8), c=conv(5, 8), d=conv(3, 8), head=head(8))
def chunk_uneven(s, x):
    one, two, three = s.a(x).chunk(3, 1)
    return s.head(pooled(s.b(one) + s.c(two) + s.d(three)))


@net(image, a=block(3, 16), b=conv(6, 8), c=conv(4, 8), head=head(8))
def split_by_size(s, x):
    one, two, three = s.a(x).split(6, 1)
    return s.head(pooled(s.b(one) + s.b(two) + s.c(three)))


@net(image, a=block(3, 13), b=conv(7, 8), c=conv(6, 8), head=head(8))
def tensor_split_uneven(s, x):
    one, two = torch.tensor_split(s.a(x), 2, dim=1)
    return s.head(pooled(s.b(one) + s.c(two)))


@net(image, a=block(3, 16), b=conv(16, 8), head=head(8))
def unbind_and_stack(s, x):
    x = s.a(x)
    one, two = x.view(x.shape[0], 2, 8, 8, 8).unbind(1)
    x = torch.stack([F.relu(two), torch.tanh(one)], 1)
    return s.head(pooled(s.b(x.flatten(1, 2))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(8, 8), head=head(8))
def stack_and_sum(s, x):
    return s.head(pooled(s.c(torch.stack([s.a(x), s.b(x)]).sum(0))))


@net(image, 0.0, pinned="aten.unbind", a=block(3, 12), head=head(12))
def unbind_every_channel(s, x):
    channels = s.a(x).unbind(1)
    return s.head(pooled(torch.stack(channels[::-1], 1)))


@net(image, a=block(3, 16), m1=block(8, 8), m2=block(8, 8), b=block(32, 12), head=head(12))
def c2f(s, x):
    parts = list(s.a(x).chunk(2, 1))
    parts.append(s.m1(parts[-1]))
    parts.append(parts[-1] + s.m2(parts[-1]))
    return s.head(pooled(s.b(torch.cat(parts, 1))))


@net(image, a=conv(3, 12), b=block(12, 24), side=block(12, 12), c=conv(24, 12), head=head(12))
def split_then_cat(s, x):
    x = s.a(x)
    side = s.side(x)
    one, two = torch.split(s.b(x), (12, 12), 1)
    return s.head(pooled(s.c(torch.cat([one, side], 1)) + two))


@net(image, a=block(3, 20), b=block(5, 8), c=block(10, 8), head=head(8))
def split_into_one_layer(s, x):
    one, two, three = torch.split(s.a(x), [5, 5, 10], dim=1)
    return s.head(pooled(torch.cat([s.b(one), s.b(two)], 2))) + s.head(pooled(s.c(three)))


@net(image, a=block(3, 16), b=conv(8, 8), head=head(8))
def slice_first(s, x):
    return s.head(pooled(s.b(s.a(x)[:, :8, :-1, :-1])))


@net(image, a=block(3, 16), b=conv(10, 8), c=conv(9, 8), head=head(8))
def slices_overlap(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x[:, :10]) + s.c(x[:, -9:])))


@net(image, a=block(3, 16), b=conv(8, 8), head=head(8))
def narrow_channels(s, x):
    return s.head(pooled(s.b(s.a(x).narrow(1, 4, 8))))


@net(image, 0.9, pinned="aten.select", a=block(3, 12), b=conv(12, 8), head=head(8))
def select_one_channel(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) * x[:, 3].unsqueeze(1)))


@net(image, 0.9, a=block(3, 12), b=conv(1, 8), c=conv(12, 8), head=head(8))
def slice_of_one_channel(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x[:, 2:3]) + s.c(x)))


@net(image, a=block(3, 12), b=conv(6, 8), head=head(8))
def every_other_channel(s, x):
    return s.head(pooled(s.b(s.a(x)[:, ::2])))


@net(image, 0.4, pinned="aten.slice", a=block(3, 12), b=conv(4, 8), head=head(8))
def every_other_channel_of_a_part(s, x):
    return s.head(pooled(s.b(s.a(x)[:, 3:10:2])))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def even_and_odd_swapped(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.stack([-x[:, 1::2], x[:, ::2]], 2).flatten(1, 2))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def gathered_by_a_list(s, x):
    return s.head(pooled(s.b(s.a(x)[:, [3, 1, 0, 2, 7, 5, 4, 6, 11, 10, 9, 8]])))


@net(image, order=torch.randperm(12, generator=torch.Generator().manual_seed(1)), a=block(3, 12), b=conv(12, 8),
     head=head(8))  # fmt: skip
def gathered_by_a_buffer(s, x):
    return s.head(pooled(s.b(torch.index_select(s.a(x), 1, s.order))))


@net(image, a=block(3, 16), b=block(4, 4), c=block(4, 4), d=conv(12, 8), head=head(8))
def res2net(s, x):
    one, two, three, four = torch.split(s.a(x), 4, 1)
    two = s.b(two + one)
    return s.head(pooled(s.d(torch.cat([two, s.c(three + two), four], 1))))


@net(image, a=block(3, 12), small=conv(4, 4, groups=4), large=conv(8, 8, kernel=5, groups=8), b=conv(12, 8),
     head=head(8))  # fmt: skip
def mixed_depthwise(s, x):
    one, two = torch.split(s.a(x), [4, 8], 1)
    return s.head(pooled(s.b(torch.cat([s.small(one), s.large(two)], 1))))


@net(image, a=block(3, 6), cheap=block(6, 6, groups=6), b=conv(10, 8), head=head(8))
def ghost(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.cat([x, s.cheap(x)], 1)[:, :10])))
