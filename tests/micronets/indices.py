"""Look-ups and writes by constant indices, in the spellings that there are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import conv, head, image, pooled, tokens
from micronets.table import net

FIVE = torch.tensor([1, 3, 4, 7, 9])
FOUR = torch.tensor([0, 5, 6, 11])
PAIRS = torch.tensor([[1, 3, 0, 2], [6, 5, 7, 4], [9, 8, 11, 10]])


@net(image, few=FIVE, a=conv(3, 12), b=conv(5, 8), c=conv(5, 8), head=head(8))
def one_buffer_looked_up_twice(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x[:, s.few]) + s.c(F.relu(x).index_select(1, s.few))))


@net(image, few=FIVE, a=conv(3, 12), b=conv(12, 8), c=conv(5, 8), head=head(8))
def looked_up_by_computed_constants(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x[:, torch.arange(11, -1, -1)]) + s.c(x[:, s.few.flip(0) - 12])))


@net(image, pairs=PAIRS, a=conv(3, 12), b=conv(4, 8), c=conv(12, 8), head=head(8))
def looked_up_by_a_table(s, x):
    x = s.a(x)[:, s.pairs]
    return s.head(pooled(s.b(x.amax(1)) + s.c(x.flatten(1, 2))))


@net(image, a=conv(3, 12), b=conv(3, 8), head=head(8))
def looked_up_by_rows_and_columns(s, x):
    x = s.a(x).unflatten(1, (3, 4))
    return s.head(pooled(s.b(x[:, [0, 1, 2], [3, 3, 0]])))


@net(image, few=FIVE, a=conv(3, 12), b=conv(5, 8), c=conv(5, 8), head=head(8))
def gathered_by_an_expanded_row(s, x):
    x, row = s.a(x), s.few.view(1, -1, 1, 1)
    return s.head(pooled(s.b(x.gather(1, row.expand(x.shape[0], -1, 8, 8))) + s.c(torch.take_along_dim(x, row, 1))))


@net(tokens, scores=nn.Linear(5, 1), a=nn.Linear(5, 16), b=nn.Linear(16, 8), head=head(8))
def gathered_by_computed_places(s, x):
    places = s.scores(x).topk(3, 1).indices
    y = s.a(x)
    return s.head(s.b(y.gather(1, places.expand(-1, -1, 16)) * torch.take_along_dim(y, places, 1)).mean(1))


@net(image, few=FOUR, a=conv(3, 12), side=conv(3, 4), b=conv(12, 8), head=head(8))
def written_by_a_buffer(s, x):
    y = s.a(x)
    y[:, s.few] = s.side(x)
    return s.head(pooled(s.b(y)))


@net(image, few=FOUR, a=conv(3, 12), side=conv(3, 4), b=conv(12, 8), head=head(8))
def copied_and_added_by_a_buffer(s, x):
    side = s.side(x)
    y = s.a(x).index_copy(1, s.few, side).index_add(1, s.few.flip(0), F.relu(side))
    row = s.few.view(1, -1, 1, 1).expand(x.shape[0], -1, 8, 8)
    return s.head(pooled(s.b(F.relu(y).scatter_add(1, row, side))))


@net(image, few=FOUR, side=conv(3, 4), b=conv(12, 8), head=head(8))
def scattered_into_zeros(s, x):
    whole = x.new_zeros(x.shape[0], 12, 8, 8)
    whole[:, s.few] = s.side(x)
    return s.head(pooled(s.b(whole)))


@net(image, few=FOUR, a=conv(3, 12), b=conv(12, 8), act=nn.ReLU(inplace=True), head=head(8))
def filled_by_a_buffer(s, x):
    y = s.act(s.a(x))
    y[:, s.few] = 0.5
    return s.head(pooled(s.b(y.index_fill(1, s.few[:2] + 1, -1.0))))


@net(image, 0.4, pinned="aten.index_fill_", few=FOUR, a=conv(3, 12), b=conv(12, 8), head=head(8))
def filled_while_a_view_is_read(s, x):
    y = s.a(x)
    view = y.flatten(2)
    y[:, s.few] = 0.5
    return s.head(pooled(s.b(y)) + s.b(view.unflatten(2, (8, 8))).mean((2, 3)))


@net(image, 0.3, pinned="aten.index_put_", a=conv(3, 12), side=conv(3, 4), b=conv(12, 8), head=head(8))
def written_twice_at_a_place(s, x):
    y = s.a(x)
    y[:, [0, 5, 5, 7]] = s.side(x).relu() * 0
    return s.head(pooled(s.b(y)))
