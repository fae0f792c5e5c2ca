"""Plain chains of layers, and chains with residual sums."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import block, conv, head, image, pooled, vector
from micronets.table import net

# -- plain chains ---------------------------------------------------------------------------------------------------


@net(image, conv=conv(3, 12), bn=nn.BatchNorm2d(12), head=head(12))
def conv_bn_relu(s, x):
    return s.head(pooled(F.relu(s.bn(s.conv(x)))))


@net(vector, a=nn.Linear(10, 16), b=nn.Linear(16, 12), head=head(12))
def mlp(s, x):
    return s.head(F.gelu(s.b(F.relu(s.a(x)))))


@net(vector, a=nn.Linear(10, 16), bn=nn.BatchNorm1d(16), head=head(16))
def mlp_bn(s, x):
    return s.head(torch.sigmoid(s.bn(s.a(x))))  # f(0) is not 0


@net(image, a=conv(3, 12), b=conv(12, 7))
def output_is_a_conv(s, x):
    return s.b(F.elu(s.a(x)))


@net(image, 0.0, a=conv(3, 7))
def only_an_output(s, x):
    return F.relu(s.a(x))


@net(image, a=conv(3, 12), pool=nn.MaxPool2d(2), up=nn.Upsample(scale_factor=2, mode="bilinear"), b=conv(12, 8),
     head=head(8))  # fmt: skip
def pools_and_upsamples(s, x):
    x = s.up(s.pool(F.hardswish(s.a(x))))
    x = F.interpolate(F.avg_pool2d(s.b(x), 2), scale_factor=2)
    return s.head(F.adaptive_avg_pool2d(F.dropout(x, 0.5, s.training), 1).flatten(1))


@net(image, a=conv(3, 12), squash=conv(12, 1), b=conv(1, 12), head=head(12))
def one_channel_between(s, x):
    return s.head(pooled(s.b(F.relu(s.squash(F.relu(s.a(x)))))))


@net(image, a=conv(1, 12, bias=False), b=block(12, 8), head=head(8))
def one_channel_input(s, x):
    return s.head(pooled(s.b(s.a(x[:, :1]))))


@net(image, a=block(3, 12), b=conv(12, 8, kernel=1, bias=False), act=nn.PReLU(8), head=head(8))
def prelu_per_channel(s, x):
    return s.head(pooled(s.act(s.b(s.a(x)))))


@net(image, a=conv(3, 12, padding="same"), b=conv(12, 8, padding_mode="reflect"), c=conv(8, 8, padding_mode="circular"),
     head=head(8))  # fmt: skip
def padding_modes(s, x):
    return s.head(pooled(s.c(F.leaky_relu(s.b(F.relu6(s.a(x)))))))


@net(image, a=conv(3, 12), norm=nn.BatchNorm2d(12, track_running_stats=False), b=conv(12, 8), head=head(8))
def batch_norm_of_the_batch(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def casts(s, x):
    x = s.a(x).to(torch.float64).relu()
    return s.head(pooled(s.b(x.float().to(x.device).contiguous())))


@net(vector, a=nn.Linear(10, 16), head=head(16))
def clone_and_copy(s, x):
    x = s.a(x).clone()
    return s.head(torch.empty_like(x).copy_(x).nan_to_num().clamp(-2, 2))


@net(image, a=conv(3, 12), pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2), b=conv(12, 8),
     head=head(8))  # fmt: skip
def max_unpool(s, x):
    return s.head(pooled(s.b(s.unpool(*s.pool(s.a(x))))))


# -- residual -------------------------------------------------------------------------------------------------------


@net(image, stem=block(3, 12), a=conv(12, 12), b=conv(12, 12), head=head(12))
def residual_add(s, x):
    x = s.stem(x)
    x = x + s.b(F.relu(s.a(x)))
    return s.head(pooled(F.relu(x)))


@net(image, stem=block(3, 8), a=block(8, 12, stride=2), b=conv(12, 12), down=conv(8, 12, kernel=1, stride=2),
     head=head(12))  # fmt: skip
def downsample_residual(s, x):
    x = s.stem(x)
    return s.head(pooled(F.relu(s.b(s.a(x)) + s.down(x))))


@net(image, stem=block(3, 8), a=block(8, 16, stride=2), b=conv(16, 16), head=head(16))
def option_a_shortcut(s, x):
    x = s.stem(x)
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0.0)
    return s.head(pooled(F.relu(s.b(s.a(x)) + shortcut)))


@net(image, stem=block(3, 8), a=block(8, 14), head=head(14))
def padded_on_one_side(s, x):
    x = s.stem(x)
    return s.head(pooled(s.a(x) + F.pad(x, (0, 0, 0, 0, 0, 6), value=1.5)))


@net(image, stem=conv(3, 8), head=head(14))
def padded_then_read(s, x):
    return s.head(pooled(F.pad(s.stem(x), (0, 0, 0, 0, 2, 4), value=1.5)))


@net(image, 0.0, pinned="aten.add", a=conv(3, 3), head=head(3))
def residual_with_the_input(s, x):
    return s.head(pooled(x + s.a(x)))


@net(image, a=conv(3, 12), b=conv(3, 12, kernel=1), bn=nn.BatchNorm2d(12), c=conv(12, 12), head=head(12))
def three_branches(s, x):
    x = F.relu(s.a(x) + s.b(x))
    return s.head(pooled(F.relu(s.bn(x) + s.c(x) + x)))


@net(image, down=block(3, 8), deep=block(8, 12, stride=2), up=nn.ConvTranspose2d(12, 8, 2, 2), out=conv(16, 8),
     head=head(8))  # fmt: skip
def skip_over_a_u(s, x):
    x = s.down(x)
    return s.head(pooled(s.out(torch.cat([x, s.up(s.deep(x))], 1))))


@net(image, c1=block(3, 8), c2=block(8, 12, stride=2), l1=conv(8, 10, kernel=1), l2=conv(12, 10, kernel=1),
     out=conv(10, 8), head=head(8))  # fmt: skip
def pyramid(s, x):
    c1 = s.c1(x)
    p2 = s.l2(s.c2(c1))
    p1 = s.l1(c1) + F.interpolate(p2, size=c1.shape[-2:], mode="nearest")
    return s.head(pooled(s.out(p1))), s.head(pooled(s.out(p2)))
