"""Shuffles, rolls, repeats and pads: channels and places change their position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micronets.layers import block, conv, head, image, normal, pooled, tokens, vector
from micronets.table import net


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def channel_shuffle(s, x):
    return s.head(pooled(s.b(shuffled(s.a(x), 2))))


@net(image, a=block(3, 12), shuffle=nn.ChannelShuffle(3), b=conv(12, 8), head=head(8))
def channel_shuffle_module(s, x):
    return s.head(pooled(s.b(s.shuffle(s.a(x)))))


@net(image, a=block(3, 16), b1=block(8, 8), b2=block(8, 8), c=conv(16, 8), head=head(8))
def stacked_shuffles(s, x):
    x = s.a(x)
    for branch in (s.b1, s.b2):
        one, two = x.chunk(2, 1)
        x = shuffled(torch.cat([one, branch(two)], 1), 2)
    return s.head(pooled(s.c(x)))


@net(image, 0.6, a=block(3, 12), g1=block(12, 12, groups=3), g2=conv(12, 12, groups=3), head=head(12))
def shuffle_between_groups(s, x):
    return s.head(pooled(s.g2(shuffled(s.g1(s.a(x)), 3))))


@net(image, a=block(3, 12), g=block(12, 12, groups=3), b=conv(12, 8), head=head(8))
def shuffle_after_groups(s, x):
    return s.head(pooled(s.b(shuffled(s.g(s.a(x)), 3))))


@net(image, a=block(3, 24), shuffle=nn.PixelShuffle(2), b=conv(6, 8), head=head(8))
def pixel_shuffle(s, x):
    return s.head(pooled(s.b(s.shuffle(s.a(x)))))


@net(image, a=block(3, 6), shuffle=nn.PixelUnshuffle(2), b=conv(24, 8), head=head(8))
def pixel_unshuffle(s, x):
    return s.head(pooled(s.b(s.shuffle(s.a(x)))))


@net(image, a=block(3, 24), b=conv(6, 8), head=head(8))
def depth_to_space_by_hand(s, x):
    n, _, h, w = x.shape
    x = s.a(x).view(n, 2, 2, 6, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, 6, 2 * h, 2 * w)
    return s.head(pooled(s.b(x)))


@net(image, a=block(3, 6), b=conv(24, 8), head=head(8))
def focus(s, x):
    x = s.a(x)
    x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    return s.head(pooled(s.b(x)))


@net(image, a=block(3, 6), fc=nn.Linear(24, 16), head=head(16))
def patch_merging(s, x):
    x = s.a(x).permute(0, 2, 3, 1)
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return s.head(s.fc(x)).mean((1, 2))


@net(image, a=block(3, 6), fc=nn.Linear(24, 16), head=head(16))
def unfold_patches(s, x):
    x = F.unfold(s.a(x), 2, stride=2).transpose(1, 2)
    return s.head(F.relu(s.fc(x))).mean(1)


@net(image, a=block(3, 24), b=conv(6, 8), head=head(8))
def fold_patches(s, x):
    x = F.fold(s.a(x).flatten(2), (16, 16), 2, stride=2)
    return s.head(pooled(s.b(x)))


@net(image, a=block(3, 6), b=nn.Conv3d(6, 8, (1, 2, 2)), head=head(8))
def tensor_unfold(s, x):
    x = s.a(x).unfold(2, 4, 4).flatten(4)
    return s.head(s.b(x).mean((2, 3, 4)))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def roll_places(s, x):
    return s.head(pooled(s.b(torch.roll(s.a(x), (1, -2), (2, 3)))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def roll_channels(s, x):
    return s.head(pooled(s.b(torch.roll(s.a(x), 5, 1))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def flip_channels(s, x):
    return s.head(pooled(s.b(s.a(x).flip(1))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def flip_and_add(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x + x.flip(1))))


@net(image, a=block(3, 6), b=conv(12, 8), head=head(8))
def repeat_interleave_channels(s, x):
    return s.head(pooled(s.b(s.a(x).repeat_interleave(2, dim=1))))


@net(image, a=block(3, 6), b=conv(12, 8), head=head(8))
def repeat_channels(s, x):
    return s.head(pooled(s.b(s.a(x).repeat(1, 2, 1, 1))))


@net(lambda batch: (*tokens(batch), normal(batch, 6) > 0), embed=nn.Linear(5, 12), mlp=nn.Linear(12, 16), head=head(16))
def mask_repeated_over_channels(s, x, y):
    x = s.embed(x)
    x = x.masked_fill(y.unsqueeze(-1).repeat(1, 1, 12), 0.0)
    return s.head(F.relu(s.mlp(x)).mean(1))


@net(image, a=block(3, 12), mask=conv(12, 1), b=conv(12, 8), head=head(8))
def expanded_mask(s, x):
    x = s.a(x)
    mask = torch.sigmoid(s.mask(x)).expand(-1, 12, -1, -1)
    return s.head(pooled(s.b(x * mask)))


@net(vector, fc=nn.Linear(10, 12), b=conv(12, 8), head=head(8))
def expanded_places(s, x):
    x = s.fc(x)[:, :, None, None].expand(-1, -1, 4, 4)
    return s.head(pooled(F.relu(s.b(x))))


@net(image, a=block(3, 12), b=conv(14, 8), head=head(8))
def coordinates_appended(s, x):
    x = s.a(x)
    rows = torch.linspace(-1, 1, 8).view(1, 1, 8, 1).expand(x.shape[0], 1, 8, 8)
    return s.head(pooled(s.b(torch.cat([x, rows, rows.transpose(2, 3)], 1))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def swapped_axes(s, x):
    return s.head(pooled(s.b(s.a(x).swapaxes(1, 2).movedim(2, 0).permute(1, 0, 3, 2))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def padded_places(s, x):
    x = F.pad(s.a(x), (1, 1, 0, 2), "reflect")
    return s.head(pooled(s.b(F.pad(x, (-1, 0, 1, 0)))))
