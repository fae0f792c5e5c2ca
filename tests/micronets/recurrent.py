"""Recurrent layers, and recurrences by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from micronets.layers import block, head, image, normal, short_words, signal, steps, weight
from micronets.table import net


@net(steps, embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, batch_first=True), head=head(12))
def lstm(s, x):
    return s.head(s.rnn(s.embed(x))[0][:, -1])


@net(steps, rnn=nn.RNN(5, 12, batch_first=True), head=head(12))
def plain_rnn_of_the_input(s, x):
    return s.head(s.rnn(x)[0])


@net(short_words, table=nn.Embedding(20, 8), rnn=nn.LSTM(8, 12, 3, dropout=0.5), head=head(12))
def lstm_stacked(s, x):
    return s.head(s.rnn(s.table(x).transpose(0, 1))[0].transpose(0, 1))


@net(steps, rnn=nn.LSTM(5, 8, num_layers=2, bidirectional=True, batch_first=True), mlp=nn.Linear(16, 12),
     head=head(12))  # fmt: skip
def lstm_both_ways(s, x):
    return s.head(F.relu(s.mlp(s.rnn(x)[0]))).mean(1)


@net(steps, rnn=nn.LSTM(5, 12, bias=False, batch_first=True), head=head(24))
def lstm_final_states(s, x):
    _, (h, c) = s.rnn(x)
    return s.head(torch.cat([h[-1], c[-1]], 1))


@net(steps, rnn=nn.LSTM(5, 8, 2, bidirectional=True, batch_first=True), head=head(16))
def lstm_final_states_both_ways(s, x):
    _, (h, _) = s.rnn(x)
    return s.head(torch.cat([h[-2], h[-1]], 1))


@net(steps, rnn=nn.LSTM(5, 12, proj_size=8, batch_first=True), mlp=nn.Linear(8, 12), head=head(12))
def lstm_projected(s, x):
    return s.head(F.relu(s.mlp(s.rnn(x)[0]))).mean(1)


@net(steps, embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, 2, bias=False, bidirectional=True, proj_size=6),
     head=head(12), states=head(18))  # fmt: skip
def lstm_projected_both_ways(s, x):
    y, (h, c) = s.rnn(s.embed(x).transpose(0, 1))
    return s.head(y.mean(0)), s.states(torch.cat([h[1], c[2]], 1))


@net(steps, h=weight(2, 1, 6), rnn=nn.LSTM(5, 12, bidirectional=True, proj_size=6, batch_first=True), head=head(12),
     c=weight(2, 1, 12))  # fmt: skip
def lstm_projected_from_a_learned_state(s, x):
    h, c = (state.expand(-1, x.shape[0], -1).contiguous() for state in (s.h, s.c))
    return s.head(s.rnn(x, (h, c))[0].amax(1))


@net(lambda n: (normal(n, 3, 5), normal(n + 1, 2, 12)[:n]), 0.04, embed=nn.Linear(5, 8),
     rnn=nn.LSTM(8, 12, 2, batch_first=True), head=head(12))  # fmt: skip
def lstm_from_a_given_state(s, x, h):
    h = h.transpose(0, 1).contiguous()
    return s.head(s.rnn(s.embed(x), (h, torch.tanh(h)))[0][:, -1])


@net(steps, h=weight(2, 1, 12), c=weight(2, 1, 12), rnn=nn.LSTM(5, 12, bidirectional=True, batch_first=True),
     head=head(24))  # fmt: skip
def lstm_from_a_learned_state(s, x):
    h, c = (state.expand(-1, x.shape[0], -1).contiguous() for state in (s.h, s.c))
    return s.head(s.rnn(x, (h, c))[0].amax(1))


@net(steps, start=nn.Linear(5, 12), rnn=nn.GRU(5, 12, batch_first=True), head=head(12))
def gru_from_a_computed_state(s, x):
    return s.head(s.rnn(x, torch.tanh(s.start(x.mean(1)))[None])[1][0])


@net(steps, rnn=nn.LSTM(5, 12, batch_first=True), head=head(12))
def lstm_from_written_zeros(s, x):
    h = x.new_zeros(1, x.shape[0], 12)
    return s.head(s.rnn(x, (h, h))[0].mean(1))


@net(steps, a=nn.LSTM(5, 12, batch_first=True), b=nn.LSTM(12, 8, batch_first=True), head=head(8))
def two_lstms(s, x):
    return s.head(s.b(F.relu(s.a(x)[0]))[1][0][0])


@net(
    steps,
    zeroed="",
    embed=nn.Linear(5, 12),
    rnn=nn.LSTM(12, 12, batch_first=True),
    norm=nn.LayerNorm(12),
    head=head(12),
)
def lstm_residual(s, x):
    x = s.embed(x)
    return s.head(s.norm(x + s.rnn(x)[0]).mean(1))


@net(steps, embed=nn.Linear(5, 12), rnn=nn.LSTM(12, 12, batch_first=True), head=head(12))
def lstm_used_twice(s, x):
    first, state = s.rnn(s.embed(x))
    return s.head(s.rnn(first, state)[0][:, -1])


@net(lambda n: (normal(n, 3, 5),), embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, bidirectional=True), head=head(24))
def lstm_steps_first(s, x):
    return s.head(s.rnn(s.embed(x))[0])


@net(steps, 0.5, rnn=nn.LSTM(5, 1, batch_first=True), mlp=nn.Linear(1, 8), head=head(8))
def lstm_of_one_unit(s, x):
    return s.head(s.mlp(s.rnn(x)[0]).mean(1))


@net(steps, embed=nn.Linear(5, 8), rnn=nn.GRU(8, 12), head=head(12))
def gru(s, x):
    return s.head(s.rnn(s.embed(x).transpose(0, 1))[1][0])


@net(steps, rnn=nn.GRU(5, 8, 2, bias=False, bidirectional=True, batch_first=True), head=head(16))
def gru_both_ways(s, x):
    return s.head(s.rnn(x)[0].amax(1))


@net(steps, embed=nn.Linear(5, 8), rnn=nn.RNN(8, 12, 2, batch_first=True), head=head(12))
def rnn(s, x):
    return s.head(s.rnn(s.embed(x))[0]).mean(1)


@net(steps, rnn=nn.RNN(5, 12, nonlinearity="relu", bidirectional=True, bias=False), head=head(24))
def rnn_relu(s, x):
    y, h = s.rnn(x.transpose(0, 1))
    return s.head(y.mean(0) + h.transpose(0, 1).flatten(1))


@net(steps, wx=nn.Linear(5, 32), wh=nn.Linear(8, 32, bias=False), head=head(8))
def lstm_by_hand(s, x):
    h = c = x.new_zeros(x.shape[0], 8)
    for t in range(3):
        i, f, g, o = (s.wx(x[:, t]) + s.wh(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return s.head(h)


@net(steps, embed=nn.Linear(5, 8), cell=nn.LSTMCell(8, 12), head=head(12))
def lstm_cell(s, x):
    x = s.embed(x)
    h = c = x.new_zeros(x.shape[0], 12)
    for t in range(2):
        h, c = s.cell(x[:, t], (h, c))
    return s.head(h)


@net(steps, first=nn.GRUCell(5, 12, bias=False), second=nn.GRUCell(12, 8), head=head(8))
def gru_cells(s, x):
    a = b = None
    for t in range(3):
        a = s.first(x[:, t], a)
        b = s.second(a, b)
    return s.head(b)


@net(steps, start=weight(12), tanh=nn.RNNCell(5, 12), relu=nn.RNNCell(12, 12, nonlinearity="relu"), head=head(12))
def rnn_cells(s, x):
    h = s.start.expand(x.shape[0], -1)
    for t in range(2):
        h = s.relu(s.tanh(x[:, t], h), h)
    return s.head(h)


@net(signal, a=nn.Conv1d(3, 12, 3, stride=2), bn=nn.BatchNorm1d(12), rnn=nn.LSTM(12, 8, 2, bidirectional=True,
     batch_first=True), head=head(16))  # fmt: skip
def speech(s, x):
    x = F.relu(s.bn(s.a(x)))
    return s.head(s.rnn(x.transpose(1, 2))[0])


@net(image, a=block(3, 8), rnn=nn.GRU(32, 12, bidirectional=True, batch_first=True), head=head(24))
def columns_read_in_turn(s, x):
    x = F.max_pool2d(s.a(x), 2)
    return s.head(s.rnn(x.permute(0, 3, 1, 2).flatten(2))[0])


@net(lambda n: (*short_words(n), short_words(n + 1)[0][:n, :2]), zeroed="all", table=nn.Embedding(20, 8),
     encoder=nn.GRU(8, 12, batch_first=True), decoder=nn.GRU(8, 12, batch_first=True), query=nn.Linear(12, 12),
     head=nn.Linear(24, 20))  # fmt: skip
def translation_with_attention(s, x, y):
    keys, state = s.encoder(s.table(x))
    found, _ = s.decoder(s.table(y), state)
    weights = (s.query(found) @ keys.transpose(1, 2)).softmax(-1)
    return s.head(torch.cat([found, weights @ keys], 2))


@net(short_words, zeroed="all", table=nn.Embedding(20, 12), rnn=nn.LSTM(12, 12, batch_first=True))
def language_model(s, x):
    return s.rnn(s.table(x))[0] @ s.table.weight.t()


@net(steps, embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, batch_first=True), head=head(12))
def lstm_over_packed_sequences(s, x):
    lengths = torch.full((x.shape[0],), 3)
    packed = nn.utils.rnn.pack_padded_sequence(s.embed(x), lengths, batch_first=True)
    return s.head(s.rnn(packed)[1][0][0])


@net(steps, rnn=nn.GRU(5, 12, bidirectional=True, batch_first=True), head=head(24))
def gru_over_packed_sequences(s, x):
    lengths = torch.full((x.shape[0],), 2)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    y, _ = nn.utils.rnn.pad_packed_sequence(s.rnn(packed)[0], batch_first=True, padding_value=0.5)
    return s.head(y)
