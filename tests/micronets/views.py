"""Views and reshapes that move channels between axes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import block, conv, head, image, normal, pixels_last, pooled, signal, tokens, vector
from micronets.table import net


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def view_hard_coded(s, x):
    x = F.max_pool2d(s.a(x), 2).view(-1, 12 * 4 * 4)
    return s.head(F.relu(s.fc(x)))


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def view_hard_coded_after_the_batch(s, x):
    x = F.max_pool2d(s.a(x), 2)
    return s.head(F.relu(s.fc(x.view(x.size(0), 12 * 16))))


@net(image, 0.6, pinned="aten.reshape", a=block(3, 12), fc=nn.Linear(64, 6), head=nn.Linear(72, 5))
def view_hard_coded_channels(s, x):
    x = s.fc(s.a(x).view(-1, 12, 64))
    return s.head(x.reshape(-1, 72))


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def view_minus_one(s, x):
    x = F.max_pool2d(s.a(x), 2)
    return s.head(F.relu(s.fc(x.view(x.shape[0], -1))))


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def flatten_to_linear(s, x):
    return s.head(F.relu(s.fc(torch.flatten(F.max_pool2d(s.a(x), 2), 1))))


@net(image, a=block(3, 12), head=head(12))
def unused_view_with_sizes(s, x):
    x = s.a(x)
    x.view(-1, 2, 6, 8, 8).tanh()  # of fewer channels it takes another batch, or fails
    return s.head(pooled(x))


@net(pixels_last, a=conv(3, 12), b=conv(12, 8))
def contiguous_in_the_traced_layout_only(s, x):
    x = s.b(torch.relu(s.a(x))).permute(0, 2, 3, 1).contiguous()  # kernels keep the channels last: nothing to do
    return x.view(x.shape[0], -1, 4)


@net(signal, a=nn.Conv1d(3, 12, 3), bn=nn.BatchNorm1d(12), fc=nn.Linear(12 * 7, 16), head=head(16))
def conv1d_flatten(s, x):
    return s.head(F.relu(s.fc(s.bn(s.a(x)).flatten(1))))


@net(lambda n: (normal(n, 2, 4, 4, 4),), a=nn.Conv3d(2, 12, 3), bn=nn.BatchNorm3d(12), fc=nn.Linear(12 * 8, 16),
     head=head(16))  # fmt: skip
def conv3d_flatten(s, x):
    return s.head(F.relu(s.fc(s.bn(s.a(x)).flatten(1))))


@net(vector, fc=nn.Linear(10, 12 * 9), up=nn.ConvTranspose2d(12, 8, 4, 2, 1), head=head(8))
def view_to_image(s, x):
    x = F.relu(s.fc(x)).view(-1, s.up.in_channels, 3, 3)
    return s.head(pooled(F.relu(s.up(x))))


@net(image, a=block(3, 12), b=nn.Conv1d(12, 8, 1), head=head(8))
def places_in_a_row(s, x):
    return s.head(s.b(s.a(x).flatten(2)).mean(2))


@net(image, a=conv(3, 12), norm=nn.BatchNorm2d(12), fc=nn.Linear(12, 16), head=head(16))
def nhwc(s, x):
    x = s.norm(s.a(x)).permute(0, 2, 3, 1)
    return s.head(F.gelu(s.fc(x))).mean((1, 2))


@net(image, a=conv(3, 12), fc=nn.Linear(12, 16), back=nn.Linear(16, 12), b=conv(12, 8), head=head(8))
def nhwc_and_back(s, x):
    x = s.a(x)
    x = x + s.back(F.gelu(s.fc(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
    return s.head(pooled(s.b(x)))


@net(signal, zeroed="", a=nn.Conv1d(3, 12, 3, padding=1), bn=nn.BatchNorm1d(12), places=nn.Linear(9, 6), head=head(12))
def linear_over_places(s, x):
    x = s.places(s.bn(s.a(x)))
    return s.head(F.relu(x).transpose(1, 2)).mean(1)


@net(image, a=block(3, 12), b=nn.Linear(12, 8), head=head(8))
def squeezed(s, x):
    x = F.adaptive_avg_pool2d(s.a(x), 1).squeeze(-1).squeeze(-1)
    x = s.b(x)[:, :, None, None]
    return s.head(x.squeeze(3).squeeze(2))


@net(image, a=block(3, 12), b=nn.Linear(12, 8), head=head(8))
def windows(s, x):
    x = s.a(x).permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    x = F.relu(s.b(x)).view(-1, 2, 2, 4, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 8)
    return s.head(x).mean((1, 2))


@net(vector, a=nn.Linear(10, 24), split=nn.Unflatten(1, (6, 4)), b=nn.Conv1d(6, 8, 3), flat=nn.Flatten(), head=head(16))
def unflatten_and_flatten(s, x):
    return s.head(s.flat(F.relu(s.b(s.split(s.a(x))))))


@net(tokens, 0.8, pinned="aten.add", zeroed="all", embed=nn.Linear(5, 12), across=nn.Linear(6, 10),
     back=nn.Linear(10, 6), mlp=nn.Linear(12, 16), down=nn.Linear(16, 12), head=head(12))  # fmt: skip
def mixer(s, x):
    x = s.embed(x)
    x = x + s.back(F.gelu(s.across(x.transpose(1, 2)))).transpose(1, 2)
    return s.head(x + s.down(F.gelu(s.mlp(x)))).sum(1)
