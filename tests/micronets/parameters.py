"""Parameters, buffers and constants that are used beside layers, and layers used twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from micronets.layers import block, conv, head, image, pooled, tokens, vector, weight, words
from micronets.table import net


@net(image, a=conv(3, 12), scale=weight(12, 1, 1), b=conv(12, 8), head=head(8))
def layer_scale(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)) * s.scale)))


@net(image, a=conv(3, 12), learned=weight(12, 8, 8), b=conv(12, 8), head=head(8))
def learned_constant_added(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x) + s.learned))))


@net(image, a=conv(3, 12), stored=torch.zeros(1, 12, 8, 8), b=conv(12, 8), head=head(8))
def buffer_of_full_size(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x) - s.stored))))


@net(image, a=conv(3, 4), b=conv(4, 8), head=head(8))
def literal_per_channel(s, x):
    scale = torch.tensor([0.5, 2.0, -1.0, 3.0])
    return s.head(pooled(s.b(F.relu(s.a(x) * scale.view(1, 4, 1, 1)))))


@net(image, 0.4, a=conv(3, 12), b=conv(12, 8), head=head(8))
def counted_per_channel(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x) * torch.arange(12).view(1, 12, 1, 1)))))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def zeros_joined(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x + torch.zeros(x.shape[0], 12, 8, 8) + x.new_ones(12, 1, 1))))


@net(image, stem=block(3, 12), a=conv(12, 12), head=head(12))
def reused_layer(s, x):
    return s.head(pooled(s.a(F.relu(s.a(s.stem(x))))))


@net(image, a=conv(3, 12), b=conv(3, 12), bn=nn.BatchNorm2d(12), c=conv(12, 8), head=head(8))
def reused_norm(s, x):
    return s.head(pooled(s.c(F.relu(s.bn(s.a(x))) * s.bn(s.b(x)))))


@net(image, a=block(3, 8), b=block(8, 8), c=block(8, 8), head=head(8))
def reused_and_linked(s, x):
    x = s.a(x)
    return s.head(pooled(x + s.b(x) + s.b(s.c(x))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(8, 8), head=head(8))
def used_twice_in_a_cycle(s, x):
    one, two = s.a(x) + s.b(x), s.b(x) - s.a(x)
    return s.head(pooled(s.c(one + two)))


_shared = conv(8, 8)


@net(image, stem=conv(3, 8), a=_shared, b=_shared, head=head(8))
def one_module_two_names(s, x):
    return s.head(pooled(s.b(F.relu(s.a(s.stem(x))))))


_table = nn.Embedding(20, 16)
_out = nn.Linear(16, 20, bias=False)
_out.weight = _table.weight


@net(words, 0.5, zeroed="all", table=_table, mlp=nn.Linear(16, 12), back=nn.Linear(12, 16), out=_out)
def tied_embedding(s, x):
    x = s.table(x)
    return s.out(x + s.back(F.gelu(s.mlp(x))))


@net(image, zeroed="", a=parametrizations.weight_norm(conv(3, 12)), b=parametrizations.weight_norm(conv(12, 8)),
     head=head(8))  # fmt: skip
def weight_norm(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="", a=lambda: nn.utils.weight_norm(conv(3, 12)), b=lambda: nn.utils.weight_norm(conv(12, 8)),
     head=head(8))  # fmt: skip
def weight_norm_by_hook(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="", a=parametrizations.spectral_norm(conv(3, 12)), b=conv(12, 8),
     head=head(8))  # fmt: skip
def spectral_norm(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + w.flip(3)


_symmetric = conv(12, 8)
parametrize.register_parametrization(_symmetric, "weight", Symmetric())


@net(image, zeroed="", a=conv(3, 12), b=_symmetric, head=head(8))
def parametrized(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="", a=conv(3, 12), b=weight(8, 12, 3, 3), head=head(8))
def weight_standardised(s, x):
    w = s.b - s.b.mean((1, 2, 3), keepdim=True)
    w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return s.head(pooled(F.conv2d(F.relu(s.a(x)), w)))


@net(image, a=conv(3, 12), b=conv(3, 12), c=conv(12, 8), head=head(8))
def shaped_like_another(s, x):
    y = s.b(x)
    return s.head(pooled(s.c(F.relu(s.a(x).flatten(2).view_as(y)) + y.flatten(1).reshape_as(y))))


@net(tokens, a=nn.Linear(5, 12), head=head(12))
def empty_slice_in_front(s, x):
    x = s.a(x)
    return s.head(torch.cat([x[:, :0], F.relu(x[:, 0:])], 1).mean(1))


@net(vector, a=nn.Linear(10, 12), head=head(12))
def numbers_that_share_memory(s, x):
    numbers = torch.arange(1.0, 13.0)
    return s.head(F.relu(s.a(x) * numbers) + numbers.view(12))


@net(tokens, a=nn.Linear(5, 12), b=nn.Linear(5, 12), mix=nn.Conv1d(2, 4, 1), back=nn.ConvTranspose1d(4, 2, 1),
     head=head(12))  # fmt: skip
def conv_of_one_place_across_channels(s, x):
    x = torch.stack([s.a(x).mean(1), s.b(x).mean(1)], 1)
    return s.head(s.back(F.relu(s.mix(x))).sum(1))


@net(tokens, 0.2, pinned="aten.conv1d", a=nn.Linear(5, 12), mix=nn.Conv1d(6, 4, 1, padding=1), head=head(14))
def conv_of_one_place_pads_channels(s, x):
    return s.head(F.relu(s.mix(s.a(x))).sum(1))


@net(image, zeroed="", a=conv(3, 12), b=weight(8, 12, 3, 3), gain=weight(8), head=head(8))
def weight_standardised_by_batch_norm(s, x):
    w = F.batch_norm(s.b.reshape(1, 8, -1), None, None, weight=s.gain, training=True, momentum=0.0).reshape_as(s.b)
    return s.head(pooled(F.conv2d(F.relu(s.a(x)), w)))


@net(vector, zeroed="", a=nn.Linear(10, 16), w=weight(12, 16), up=weight(12, 2), down=weight(2, 16), head=head(12))
def lora(s, x):
    x = F.relu(s.a(x))
    return s.head(F.relu(F.linear(x, s.w + 0.5 * (s.up @ s.down))))


@net(vector, a=nn.Linear(10, 16), w=weight(16, 12), head=head(12))
def times_a_parameter(s, x):
    return s.head(torch.tanh(F.relu(s.a(x)) @ s.w))


@net(vector, a=nn.Linear(10, 16), w=weight(16, 12), head=head(12))
def transposed_times_column(s, x):
    x = F.relu(s.a(x)).unsqueeze(-1)
    return s.head((s.w.t() @ x).squeeze(-1))


@net(image, a=weight(12, 3, 3, 3), bias=weight(12), b=weight(8, 12, 1, 1), head=head(8))
def functional_conv(s, x):
    return s.head(pooled(F.conv2d(F.relu(F.conv2d(x, s.a, s.bias)), s.b)))


@net(vector, a=weight(16, 10), bias=weight(16), head=head(16))
def functional_linear(s, x):
    return s.head(F.relu(F.linear(x, s.a, s.bias)))


@net(vector, a=weight(10, 16), bias=weight(16), b=weight(16, 12), head=head(12))
def addmm(s, x):
    return s.head(torch.addmm(s.bias, x, s.a).relu() @ s.b)


@net(image, a=conv(3, 12).requires_grad_(False), bn=nn.BatchNorm2d(12).requires_grad_(False), b=conv(12, 8),
     c=conv(8, 12), head=head(12))  # fmt: skip
def frozen(s, x):
    x = F.relu(s.bn(s.a(x)))
    return s.head(pooled(x + s.c(s.b(x))))


@net(image, a=conv(3, 12).requires_grad_(False), head=head(12).requires_grad_(False))
def all_frozen(s, x):
    return s.head(pooled(s.a(x)))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def detached(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x.detach()) + x))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def no_grad_region(s, x):
    with torch.no_grad():
        x = F.relu(s.a(x))
        y = x * 2
    return s.head(pooled(s.b(y) + x))


@net(image, a=conv(3, 12), unused=weight(7), spare=conv(4, 4), head=head(12))
def unused_parameters(s, x):
    return s.head(pooled(s.a(x)))


@net(image, a=conv(3, 12), when=weight(12), b=conv(12, 8), head=head(8))
def compared_with_a_parameter(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.where(x > s.when[:, None, None], x, x.clamp(max=0.0)))))


@net(vector, 0.8, pinned="aten.softmax", experts=weight(3, 10, 12), out=weight(3, 12, 8), gate=nn.Linear(10, 3),
     head=head(8))  # fmt: skip
def stacked_experts(s, x):
    hidden = F.gelu(torch.matmul(x.expand(3, -1, -1), s.experts))
    each = torch.bmm(hidden, s.out)
    gate = s.gate(x).softmax(-1)
    return s.head((each * gate.t().unsqueeze(-1)).sum(0))


@net(image, zeroed="", a=conv(3, 12), b=parametrizations.weight_norm(conv(12, 8)), head=head(8))
def weight_norm_reads(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="", a=conv(3, 12), b=lambda: nn.utils.spectral_norm(conv(12, 8)).eval(), head=head(8))
def spectral_norm_by_hook_reads(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(vector, zeroed="", a=nn.Linear(10, 16), classes=weight(5, 16))
def cosine_head(s, x):
    return F.linear(F.normalize(F.relu(s.a(x))), F.normalize(s.classes))


@net(vector, zeroed="", a=nn.Linear(10, 16), codes=weight(5, 16))
def distances_to_codes(s, x):
    x = F.relu(s.a(x))
    return x.square().sum(1, keepdim=True) - 2 * x @ s.codes.t() + s.codes.square().sum(1)


@net(vector, zeroed="", a=nn.Linear(10, 16), b=weight(12, 16), head=head(12))
def orthonormal_rows(s, x):
    return s.head(F.relu(F.linear(F.relu(s.a(x)), torch.linalg.qr(s.b.t())[0].t())))


@net(vector, zeroed="", a=nn.Linear(10, 16), left=weight(12, 4), right=weight(4, 16), head=head(12))
def product_of_two(s, x):
    return s.head(F.relu(F.linear(F.relu(s.a(x)), s.left @ s.right)))
