"""Steps of tokens and signals."""

from __future__ import annotations

from randomnets.sketch import Sketch, Value, divisors, pooled, step


@step("tokens")
def attention(b: Sketch, x: Value) -> None:
    t, c = x.shape
    heads, width = b.one_of(2, 1, 4), b.one_of(4, 8, 3)
    inner = heads * width
    y = b.one_of(*reversed([v for v in b.values if v.kind == "tokens"]))
    form = b.one_of("separate", "fused", "chunked", "cross")
    split = f".view(-1, {{}}, {heads}, {width}).transpose(1, 2)"
    if form == "fused":
        qkv = b.part("qkv", f"nn.Linear({c}, {3 * inner})")
        b.plain(f"q, k, v = {qkv}({x.name}).reshape(-1, {t}, 3, {heads}, {width}).permute(2, 0, 3, 1, 4)")
    elif form == "chunked":
        qkv = b.part("qkv", f"nn.Linear({c}, {3 * inner})")
        parts = f"[p.reshape(-1, {t}, {heads}, {width}).transpose(1, 2) for p in {qkv}({x.name}).chunk(3, -1)]"
        b.plain(f"q, k, v = {parts}")
    else:
        y = y if form == "cross" else x
        for name, value in (("q", x), ("k", y), ("v", y)):
            layer = b.part(name, f"nn.Linear({value.channels}, {inner})")
            b.plain(f"{name} = {layer}({value.name}){split.format(value.shape[0])}")
    s = y.shape[0] if form == "cross" else t
    _attend(b, x, heads, width, s)


def _attend(b: Sketch, x: Value, heads: int, width: int, sources: int) -> None:
    """From q, k, v of shape (batch, heads, tokens, width) to a value like ``x``."""
    t, c = x.shape
    bias = b.one_of("", "bias")
    mask = b.parameter(heads, t, sources) if bias else ""
    if b.one_of(True, False):
        y = f"F.scaled_dot_product_attention(q, k, v{f', attn_mask={mask}' if mask else ''})"
    else:
        scale = b.one_of(f"* {width} ** -0.5", "* q.shape[-1] ** -0.5", "/ 2.0")
        y = f"((q @ k.transpose(-2, -1)) {scale}{f' + {mask}' if mask else ''}).softmax(-1) @ v"
    proj = b.part("proj", f"nn.Linear({heads * width}, {c})")
    back = b.one_of(f".reshape(-1, {t}, {heads * width})", ".flatten(2)")
    b.same(x, f"{x.name} + {proj}(({y}).transpose(1, 2){back})")


@step("tokens")
def grouped_attention(b: Sketch, x: Value) -> None:
    t, c = x.shape
    q, k, v = (b.part(n, f"nn.Linear({c}, {o})") for n, o in (("q", 16), ("k", 8), ("v", 8)))
    b.plain(f"q = {q}({x.name}).view(-1, {t}, 4, 4).transpose(1, 2)")
    flag = b.one_of(False, True)
    repeat = "" if flag else ".repeat_interleave(2, dim=1)"
    b.plain(f"k = {k}({x.name}).view(-1, {t}, 2, 4).transpose(1, 2){repeat}")
    b.plain(f"v = {v}({x.name}).view(-1, {t}, 2, 4).transpose(1, 2){repeat}")
    proj = b.part("proj", f"nn.Linear(16, {c})")
    y = f"F.scaled_dot_product_attention(q, k, v{', enable_gqa=True' if flag else ''})"
    b.same(x, f"{x.name} + {proj}({y}.transpose(1, 2).reshape(-1, {t}, 16))")


@step("tokens")
def multihead(b: Sketch, x: Value) -> None:
    heads = b.one_of(*divisors(x.channels))
    attend = b.part("attend", f"nn.MultiheadAttention({x.channels}, {heads}, batch_first=True)")
    need = b.one_of("", ", need_weights=False")
    b.same(x, f"{x.name} + {attend}({x.name}, {x.name}, {x.name}{need})[0]")


@step("tokens")
def encoder_layer(b: Sketch, x: Value) -> None:
    heads = b.one_of(*divisors(x.channels))
    first = b.one_of("", ", norm_first=True")
    made = f"nn.TransformerEncoderLayer({x.channels}, {heads}, {b.width()}, batch_first=True{first})"
    b.layer(x, "encoder", made, "tokens", x.shape)


@step("tokens", traits="shift")  # its bias
def token_mixer(b: Sketch, x: Value) -> None:
    t, _ = x.shape
    fc = b.part("across", f"nn.Linear({t}, {t})")
    b.same(x, f"{x.name} + {fc}({x.name}.transpose(1, 2)).transpose(1, 2)")


@step("tokens")
def class_token(b: Sketch, x: Value) -> None:
    t, c = x.shape
    token = b.parameter(1, 1, c)
    b.put(f"torch.cat([{token}.expand({x.name}.shape[0], -1, -1), {x.name}], 1)", "tokens", (t + 1, c))
    b.traits.add("shift")


@step("tokens", traits="sum")
def linear_attention(b: Sketch, x: Value) -> None:
    c, inner = x.channels, b.one_of(8, 4)
    q, k, v = (b.part(n, f"nn.Linear({c}, {inner})") for n in "qkv")
    context = f"({k}({x.name}).softmax(1).transpose(1, 2) @ {v}({x.name}))"
    b.put(f"F.relu({q}({x.name})) @ {context}", "tokens", x.of(inner))
    b.traits.add("shift")


@step("tokens")
def recurrent(b: Sketch, x: Value) -> None:
    t, c = x.shape
    hidden, kind = b.one_of(8, 6, 5), b.one_of("LSTM", "GRU", "RNN")
    both = b.one_of("", ", bidirectional=True")
    more = b.one_of("", ", num_layers=2", ", bias=False", ", proj_size=3" if kind == "LSTM" else "")
    out = (3 if "proj" in more else hidden) * (2 if both else 1)
    rnn = b.part("rnn", f"nn.{kind}({c}, {hidden}, batch_first=True{both}{more})")
    if b.one_of(True, False):
        b.put(f"{rnn}({x.name})[0]", "tokens", (t, out))
    else:
        b.put(f"{rnn}({x.name})[0][:, {b.one_of(-1, 0)}]", "vector", (out,))


@step("tokens")
def leave_tokens(b: Sketch, x: Value) -> None:
    t, c = x.shape
    how = b.one_of("mean", "first", "signal", "image", "flat")
    side = next((n for n in range(1, 9) if n * n == t), 0)
    if how == "signal":
        b.put(f"{x.name}.transpose(1, 2)", "signal", (c, t))
    elif how == "image" and side:
        form = b.one_of(f".transpose(1, 2).reshape(-1, {c}, {side}, {side})",
                        f".view(-1, {side}, {side}, {c}).permute(0, 3, 1, 2)")  # fmt: skip
        b.put(f"{x.name}{form.replace('.view', '.reshape')}", "image", (c, side, side))
    elif how == "flat" and t * c <= 768:
        b.projected(b.put(f"{x.name}.reshape(-1, {t * c})", "vector", (t * c,), later=False), b.width())
    else:
        b.put(f"{x.name}[:, {b.upto(0, t - 1)}]" if how == "first" else f"{x.name}.mean(1)", "vector", (c,))


@step("signal")
def leave_signal(b: Sketch, x: Value) -> None:
    c, length = x.shape
    if b.one_of(True, False):
        b.put(f"{x.name}.transpose(1, 2)", "tokens", (length, c))
    else:
        pooled(b, x)
