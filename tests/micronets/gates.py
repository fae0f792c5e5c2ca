"""Gates, and products of activations with activations or parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import block, conv, head, image, pooled, tokens, vector, weight
from micronets.table import net

# -- gates ----------------------------------------------------------------------------------------------------------


@net(image, a=block(3, 12), down=conv(12, 6, kernel=1), up=conv(6, 12, kernel=1), head=head(12))
def squeeze_excite(s, x):
    x = s.a(x)
    gate = torch.sigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1)))))
    return s.head(pooled(x * gate))


@net(image, a=block(3, 12), down=nn.Linear(12, 6), up=nn.Linear(6, 12), head=head(12))
def squeeze_excite_linear(s, x):
    x = s.a(x)
    b, c, _, _ = x.size()
    gate = torch.sigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1).view(b, c))))).view(b, c, 1, 1)
    return s.head(pooled(x * gate.expand_as(x)))


@net(image, zeroed="all", ordered=True, a=block(3, 12), mix=nn.Conv1d(1, 1, 3, padding=1), b=conv(12, 8), head=head(8))
def conv_across_channels(s, x):
    x = s.a(x)
    gate = s.mix(pooled(x).unsqueeze(1)).sigmoid().squeeze(1)
    return s.head(pooled(s.b(x * gate[:, :, None, None])))


@net(image, zeroed="all", ordered=True, a=block(3, 12), mix=nn.Conv1d(1, 1, 5, padding=2, bias=False), b=block(12, 12),
     again=nn.Conv1d(1, 1, 3, padding=1), head=head(12))  # fmt: skip
def efficient_channel_attention(s, x):
    """Wang et al. 2020, as timm writes it, twice on a residual stream."""
    x = s.a(x)
    gate = s.mix(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid().view(x.shape[0], -1, 1, 1)
    x = x + s.b(gate.expand_as(x) * x)
    gate = s.again(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid().view(x.shape[0], -1, 1, 1)
    return s.head(pooled(x * gate.expand_as(x)))


@net(image, a=block(3, 12), gate=nn.Linear(12, 12), b=conv(12, 8), head=head(8))
def broadcast_by_itself(s, x):
    """As torch.distributions does with what it is given."""
    x = s.a(x)
    x, gate = torch.broadcast_tensors(x, s.gate(pooled(x)).sigmoid()[:, :, None, None])
    return s.head(pooled(s.b(x * gate)))


@net(image, zeroed="all", a=block(3, 12), mix=conv(2, 1, bias=False), b=conv(12, 8), head=head(8))
def spatial_attention(s, x):
    x = s.a(x)
    places = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return s.head(pooled(s.b(x * s.mix(places).sigmoid())))


@net(image, a=conv(3, 16), b=conv(8, 8), head=head(8))
def glu(s, x):
    return s.head(pooled(s.b(F.glu(s.a(x), dim=1))))


@net(image, a=conv(3, 16), b=conv(8, 8), head=head(8))
def glu_by_chunk(s, x):
    one, two = s.a(x).chunk(2, 1)
    return s.head(pooled(s.b(one * torch.sigmoid(two))))


@net(tokens, a=nn.Linear(5, 24), b=nn.Linear(12, 8), head=head(8))
def gated_ffn_by_chunk(s, x):
    gate, value = s.a(x).chunk(2, dim=-1)
    return s.head(s.b(F.silu(gate) * value)).mean(1)


@net(tokens, gate=nn.Linear(5, 12), up=nn.Linear(5, 12), down=nn.Linear(12, 8), head=head(8))
def gated_ffn(s, x):
    return s.head(s.down(F.silu(s.gate(x)) * s.up(x))).mean(1)


@net(image, a=block(3, 12), b=block(3, 12), pick=nn.Linear(12, 24), head=head(12))
def selective_kernel(s, x):
    one, two = s.a(x), s.b(x)
    weights = s.pick(pooled(one + two)).view(-1, 2, 12).softmax(1)
    return s.head(pooled(one * weights[:, 0, :, None, None] + two * weights[:, 1, :, None, None]))


# -- products -------------------------------------------------------------------------------------------------------


@net(vector, a=nn.Linear(10, 12), b=nn.Linear(10, 12), head=head(12))
def bilinear_product(s, x):
    return s.head(s.a(x) * torch.tanh(s.b(x)))


@net(vector, 0.4, pinned="aten.flatten", a=nn.Linear(10, 6), b=nn.Linear(10, 8), head=head(48))
def outer_product_flattened(s, x):
    x = s.a(x).unsqueeze(2) * s.b(x).unsqueeze(1)
    return s.head(F.relu(x).flatten(1))


@net(vector, 0.4, pinned="aten.reshape", a=nn.Linear(10, 6), b=nn.Linear(10, 8), head=head(48))
def outer_product_by_bmm(s, x):
    x = torch.bmm(s.a(x).unsqueeze(2), s.b(x).unsqueeze(1))
    return s.head(x.view(-1, 48))


@net(image, 0.0, pinned="aten.flatten", a=conv(3, 8), head=head(64))
def gram_matrix(s, x):
    x = s.a(x).flatten(2)
    return s.head((x @ x.transpose(1, 2) / 64).flatten(1))


@net(vector, a=nn.Linear(10, 6), b=nn.Linear(10, 8), join=nn.Bilinear(6, 8, 12), head=head(12))
def bilinear_layer(s, x):
    return s.head(F.relu(s.join(s.a(x), s.b(x))))


@net(vector, a=nn.Linear(10, 8), b=nn.Linear(10, 8))
def dot_product(s, x):
    return (s.a(x) * s.b(x)).sum(-1)


@net(vector, zeroed="all", fields=nn.Linear(10, 24), head=head(3))
def factorisation_machine(s, x):
    v = s.fields(x).view(-1, 3, 8)
    return s.head(0.5 * ((v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True)).expand(-1, 3))


@net(vector, a=nn.Linear(10, 12), b=nn.Linear(10, 12), c=nn.Linear(12, 8), head=head(8))
def larger_of_two(s, x):
    x = torch.max(s.a(x), torch.minimum(s.b(x), s.a(x)))
    return s.head(F.relu(s.c(x)).lerp(s.c(-x), 0.3))


@net(image, a=conv(3, 12), w=weight(8, 12), head=head(8))
def einsum_as_a_conv(s, x):
    return s.head(torch.einsum("bchw,oc->bohw", s.a(x), s.w).mean((2, 3)))


@net(tokens, a=nn.Linear(5, 12), w=weight(8, 12), head=head(8))
def einsum_with_dots(s, x):
    return s.head(torch.einsum("...c,oc->...o", s.a(x), s.w)).mean(1)


@net(image, 0.0, pinned="aten.einsum", a=conv(3, 8), head=head(8))
def einsum_of_a_diagonal(s, x):
    return s.head(torch.einsum("bchh->bc", s.a(x)))


@net(tokens, a=nn.Linear(5, 12), w=weight(12, 8), head=head(8))
def einsum_without_an_arrow(s, x):
    return s.head(torch.einsum("btc,cz", s.a(x), s.w)).mean(1)


@net(image, a=conv(3, 12), w=weight(12, 8), head=head(8))
def tensordot(s, x):
    return s.head(torch.tensordot(s.a(x), s.w, dims=([1], [0])).mean((1, 2)))


@net(vector, a=nn.Linear(10, 12), w=weight(12), b=nn.Linear(1, 8), head=head(8))
def times_a_vector(s, x):
    return s.head(F.relu(s.b((F.relu(s.a(x)) @ s.w).unsqueeze(1))))


@net(image, a=conv(3, 12), route=nn.Linear(12, 2), bank=weight(2, 8 * 12 * 9), head=head(8), zeroed="")
def conditional_conv(s, x):
    x = s.a(x)
    n, c, h, w = x.shape
    kernels = (torch.sigmoid(s.route(pooled(x))) @ s.bank).view(n * 8, 12, 3, 3)
    x = F.conv2d(x.view(1, n * c, h, w), kernels, groups=n)
    return s.head(pooled(x.view(n, 8, 6, 6)))
