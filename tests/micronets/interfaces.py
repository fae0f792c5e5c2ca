"""Several inputs, several outputs, words, masks: what goes in and what comes out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import conv, head, image, normal, pooled, words
from micronets.table import net


@net(lambda n: (normal(n, 3, 8, 8), normal(n + 1, 10)[:n]), a=conv(3, 12), b=nn.Linear(10, 12), head=head(12))
def two_inputs(s, x, y):
    return s.head(pooled(F.relu(s.a(x) * s.b(y)[:, :, None, None])))


@net(lambda n: (normal(n, 10), normal(n + 1, 6)[:n]), zeroed="all", a=nn.Linear(10, 8), b=nn.Linear(6, 8),
     head=head(16))  # fmt: skip
def two_inputs_three_outputs(s, x, y):
    x, y = F.relu(s.a(x)), F.relu(s.b(y))
    return x.sum(1), (x * y).sum(1), s.head(torch.cat([x, y], 1))


@net(image, stem=conv(3, 12), a=conv(12, 8), box=head(8), label=nn.Linear(12, 3))
def dict_output(s, x):
    x = s.stem(x)
    return {"box": s.box(pooled(s.a(x))), "label": (s.label(pooled(x)), x.shape[0])}


@net(image, stem=conv(3, 12), a=conv(12, 8), head=head(8))
def features_are_an_output(s, x):
    features = F.relu(s.stem(x))
    y = F.relu(s.a(features))
    return features, s.head(pooled(y))


@net(words, table=nn.Embedding(20, 12), fc=nn.Linear(12, 16), head=head(16))
def text_classifier(s, x):
    return s.head(F.relu(s.fc(s.table(x).mean(1))))


@net(words, table=nn.Embedding(20, 12, padding_idx=0), a=nn.Conv1d(12, 8, 3), b=nn.Conv1d(12, 8, 2), head=head(16))
def text_cnn(s, x):
    x = s.table(x).transpose(1, 2)
    return s.head(torch.cat([F.relu(f(x)).amax(2) for f in (s.a, s.b)], 1))


@net(words, bag=nn.EmbeddingBag(20, 12, mode="mean"), head=head(12))
def embedding_bag(s, x):
    return s.head(s.bag(x))


@net(lambda n: (normal(n, 3, 8, 8), torch.arange(n) % 4), a=conv(3, 12), table=nn.Embedding(4, 24), b=conv(12, 8),
     head=head(8))  # fmt: skip
def modulated_by_a_class(s, x, y):
    scale, shift = s.table(y).chunk(2, 1)
    return s.head(pooled(s.b(F.relu(s.a(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]))))


@net(lambda n: (normal(n, 3, 8, 8), normal(n + 1, 2, 8, 8)[:n].tanh()), a=conv(3, 12), b=conv(12, 8), head=head(8))
def warped(s, x, grid):
    return s.head(pooled(s.b(F.grid_sample(s.a(x), grid.permute(0, 2, 3, 1), align_corners=False))))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def branch_on_shape(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) if x.shape[-1] > 4 else x))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def branch_on_values(s, x):
    x = s.a(x)
    x = F.softplus(x) if x.max() > -1e9 else F.relu(x)
    return s.head(pooled(s.b(x)))
