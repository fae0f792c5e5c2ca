"""Attention in every form in which models write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micronets.layers import conv, head, image, pooled, tokens, weight, words
from micronets.table import net


def heads_of(x: Tensor, heads: int) -> Tensor:
    n, t, c = x.shape
    return x.view(n, t, heads, c // heads).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


_QKV: dict[str, Any] = {
    **{"embed": nn.Linear(5, 12), "proj": nn.Linear(16, 12), "head": head(12)},
    **{"q": nn.Linear(12, 16), "k": nn.Linear(12, 16), "v": nn.Linear(12, 16)},
}


@net(tokens, **_QKV)
def attention(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, **_QKV)
def attention_by_hand(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return s.head(x + s.proj(joined(scores.softmax(-1) @ v))).mean(1)


@net(tokens, **_QKV)
def attention_divided(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 4) for f in (s.q, s.k, s.v))
    scores = torch.matmul(q, k.transpose(-2, -1)) / (k.size(-1) ** 0.5)
    y = torch.matmul(F.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
    return s.head(x + s.proj(y.view(x.shape[0], -1, 16))).mean(1)


@net(tokens, **_QKV)
def attention_one_head(s, x):
    x = s.embed(x)
    scores = torch.bmm(s.q(x), s.k(x).transpose(1, 2)) / 4.0
    return s.head(x + s.proj(torch.bmm(scores.softmax(-1), s.v(x)))).mean(1)


@net(tokens, **_QKV)
def attention_masked(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))).mean(1)


@net(tokens, **_QKV)
def attention_causal(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))).mean(1)


@net(tokens, **_QKV)
def attention_einsum(s, x):
    x = s.embed(x)
    q, k, v = (f(x).view(-1, 6, 2, 8) for f in (s.q, s.k, s.v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5
    y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    return s.head(x + s.proj(y.reshape(-1, 6, 16))).mean(1)


@net(tokens, **_QKV, wider=nn.Linear(5, 9), kv=nn.Linear(9, 32))
def attention_across(s, x):
    y = s.wider(x)
    x = s.embed(x)
    k, v = s.kv(y).chunk(2, -1)
    q, k, v = (heads_of(f, 2) for f in (s.q(x), k, v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), qkv=nn.Linear(12, 48), proj=nn.Linear(16, 12), head=head(12))
def attention_fused(s, x):
    x = s.embed(x)
    b, n, _ = x.shape
    q, k, v = s.qkv(x).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 16)
    return s.head(x + s.proj(y)).mean(1)


@net(
    tokens,
    zeroed="all",
    embed=nn.Linear(5, 12),
    qkv=nn.Linear(12, 48, bias=False),
    proj=nn.Linear(16, 12),
    head=head(12),
)
def attention_fused_by_hand(s, x):
    x = s.embed(x)
    b, n, _ = x.shape
    qkv = s.qkv(x).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0] * 8**-0.5, qkv[1], qkv[2]
    y = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return s.head(x + s.proj(y.transpose(1, 2).reshape(b, n, -1))).mean(1)


@net(tokens, embed=nn.Linear(5, 12), qkv=nn.Linear(12, 48), proj=nn.Linear(16, 12), head=head(12))
def attention_split_in_three(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(part, 2) for part in s.qkv(x).split(16, dim=-1))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), attend=nn.MultiheadAttention(12, 3, batch_first=True),
     mlp=nn.Linear(12, 16), back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def multihead_attention(s, x):
    x = s.embed(x)
    x = x + s.attend(x, x, x, need_weights=False)[0]
    return s.head(x + s.back(F.gelu(s.mlp(x)))).mean(1)


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), attend=nn.MultiheadAttention(12, 3), mlp=nn.Linear(12, 16),
     back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def multihead_attention_weights(s, x):
    x = s.embed(x).transpose(0, 1)
    y, weights = s.attend(x, x, x)
    return s.head((y + s.back(F.gelu(s.mlp(x)))).mean(0)), weights


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), context=nn.Linear(5, 8), head=head(12),
     attend=nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True))  # fmt: skip
def multihead_attention_across(s, x):
    other = s.context(x)
    x = s.embed(x)
    return s.head(x + s.attend(x, other, other, need_weights=False)[0]).mean(1)


@net(tokens, zeroed="", embed=nn.Linear(5, 12), head=head(12),
     layer=nn.TransformerDecoderLayer(12, 2, 16, batch_first=True, norm_first=True))  # fmt: skip
def decoder_layer(s, x):
    x = s.embed(x)
    return s.head(s.layer(x, x.flip(1))).mean(1)


@net(tokens, zeroed="", embed=nn.Linear(5, 12), layer=nn.TransformerEncoderLayer(12, 2, 16, batch_first=True),
     head=head(12))  # fmt: skip
def encoder_layer(s, x):
    return s.head(s.layer(s.embed(x))).mean(1)


_GROUPED: dict[str, Any] = {
    **{"embed": nn.Linear(5, 12), "proj": nn.Linear(32, 12), "head": head(12)},
    **{"q": nn.Linear(12, 32), "k": nn.Linear(12, 16), "v": nn.Linear(12, 16)},
}


@net(tokens, **_GROUPED)
def grouped_query_interleaved(s, x):
    x = s.embed(x)
    q = heads_of(s.q(x), 4)
    k, v = (heads_of(f(x), 2).repeat_interleave(2, dim=1) for f in (s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, **_GROUPED)
def grouped_query_expanded(s, x):
    x = s.embed(x)
    q = heads_of(s.q(x), 4)
    k, v = (heads_of(f(x), 2)[:, :, None].expand(-1, 2, 2, 6, 8).reshape(-1, 4, 6, 8) for f in (s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, **_GROUPED)
def grouped_query_flag(s, x):
    x = s.embed(x)
    q, k, v = heads_of(s.q(x), 4), heads_of(s.k(x), 2), heads_of(s.v(x), 2)
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))).mean(1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([-two, one], -1) * sin


@net(tokens, **_QKV, fixed_angles=torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.5, 0.2, 0.1])).repeat(1, 2))
def rotary(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    cos, sin = s.fixed_angles.cos(), s.fixed_angles.sin()
    y = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
    return s.head(x + s.proj(joined(y))).mean(1)


@net(tokens, **_QKV)
def rotary_computed(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    turns = 1.0 / (100 ** (torch.arange(0, 8, 2).float() / 8))
    angles = torch.outer(torch.arange(6).float(), turns).repeat(1, 2)
    q, k = (rotated(part, angles.cos(), angles.sin()) for part in (q, k))
    y = F.scaled_dot_product_attention(q, k, v)
    return s.head(x + s.proj(joined(y))).mean(1)


@net(tokens, **_QKV)
def rotary_interleaved(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    angles = torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.5, 0.2, 0.1])).repeat_interleave(2, 1)
    turned = [torch.stack([-part[..., 1::2], part[..., ::2]], -1).reshape(part.shape) for part in (q, k)]
    q, k = (part * angles.cos() + other * angles.sin() for part, other in zip((q, k), turned, strict=True))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, zeroed="", **_QKV, nq=nn.RMSNorm(8), nk=nn.RMSNorm(8))
def attention_with_normed_keys(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(s.nq(q), s.nk(k), v)))).mean(1)


@net(tokens, **_QKV, bias=weight(2, 6, 6))
def attention_with_bias(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=s.bias)))).mean(1)


@net(tokens, **_QKV, bias_table=weight(11, 2), where=(torch.arange(6)[:, None] - torch.arange(6) + 5).flatten())
def relative_position_bias(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    bias = s.bias_table[s.where].view(6, 6, 2).permute(2, 0, 1).unsqueeze(0)
    scores = q @ k.transpose(-2, -1) * 8**-0.5 + bias
    return s.head(x + s.proj(joined(scores.softmax(-1) @ v))).mean(1)


@net(tokens, 0.9, pinned="aten.matmul", **_QKV, mix=nn.Linear(4, 4))
def talking_heads(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 4) for f in (s.q, s.k, s.v))
    scores = s.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1) * 0.5).permute(0, 3, 1, 2)
    return s.head(x + s.proj(joined(scores.softmax(-1) @ v))).mean(1)


@net(tokens, **{**_QKV, "proj": lambda: weight(16, 12)}, shift=weight(12))
def attention_into_a_product_of_rows(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:-1], -1)
    return s.head(x + torch.addmm(s.shift, y.view(-1, y.size(-1)), s.proj).view(x.shape)).mean(1)


@net(tokens, **_QKV)
def many_narrow_heads(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 8) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, 0.4, pinned="aten.softmax", **_QKV)
def attention_over_channels(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 4).transpose(2, 3) for f in (s.q, s.k, s.v))
    y = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return s.head(x + s.proj(joined(y.transpose(2, 3)))).mean(1)


@net(image, a=conv(3, 12), qkv=conv(12, 24, kernel=1), proj=conv(8, 12, kernel=1), head=head(12))
def linear_attention(s, x):
    x = F.relu(s.a(x))
    q, k, v = s.qkv(x).flatten(2).chunk(3, 1)
    context = k.softmax(-1) @ v.transpose(1, 2)
    y = (context.transpose(1, 2) @ F.relu(q)).unflatten(2, (8, 8))
    return s.head(pooled(x + s.proj(y)))


@net(tokens, embed=nn.Linear(5, 12), token=weight(1, 1, 12), position=weight(1, 7, 12), mlp=nn.Linear(12, 16),
     back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def class_token(s, x):
    x = torch.cat([s.token.expand(x.shape[0], -1, -1), s.embed(x)], dim=1) + s.position
    x = x + s.back(F.gelu(s.mlp(x)))
    return s.head(x[:, 0])


@net(tokens, embed=nn.Linear(5, 12), mlp=nn.Linear(12, 16), back=nn.Linear(16, 12), head=head(12))
def sine_positions_computed(s, x):
    angles = torch.arange(6.0)[:, None] * torch.exp(torch.arange(0.0, 12.0, 2.0) / -12)
    x = s.embed(x) + torch.cat([angles.sin(), angles.cos()], 1)
    return s.head((x + s.back(F.gelu(s.mlp(x)))).mean(1))


@net(image, patch=nn.Conv2d(3, 12, 4, stride=4), position=weight(1, 4, 12), mlp=nn.Linear(12, 16),
     back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def position_embedding(s, x):
    x = s.patch(x).flatten(2).transpose(1, 2) + s.position
    return s.head((x + s.back(F.gelu(s.mlp(x)))).mean(1))


@net(words, table=nn.Embedding(20, 12), places=nn.Embedding(6, 12), mlp=nn.Linear(12, 16), head=head(16))
def word_and_place_tables(s, x):
    x = s.table(x) + s.places(torch.arange(6))
    return s.head(F.relu(s.mlp(x))).mean(1)
