"""Steps that split, join, move and reduce channels."""

from __future__ import annotations

from hypothesis import strategies as st

from randomnets.sketch import ANY, LARGEST, Sketch, Value, divisors, step

# -- channels: split, join, move ------------------------------------------------------------------------------------


@step(*ANY)
def split(b: Sketch, x: Value) -> None:
    """Two or three parts, all of which may be used later."""
    if x.channels < 3:
        return
    c, d = x.channels, x.axis
    how = b.one_of("chunk", "sizes", "size", "tensor_split", "three")
    if how in ("chunk", "tensor_split"):
        first = -(-c // 2)
        sizes, call = [first, c - first], f"{x.name}.{how}(2, {d})"
    elif how == "sizes":
        first = b.upto(1, c - 1)
        sizes, call = [first, c - first], f"torch.split({x.name}, [{first}, {c - first}], {d})"
    elif how == "size":
        first = b.upto(-(-c // 3), c - 1)
        sizes = [min(first, c - i) for i in range(0, c, first)]
        call = f"{x.name}.split({first}, dim={d})"
    else:
        size = -(-c // 3)
        sizes = [min(size, c - i) for i in range(0, c, size)]
        call = f"{x.name}.chunk(3, {d - 1 - len(x.shape)})"
    parts = f"parts{len(b.lines)}"
    b.plain(f"{parts} = {call}")
    for i, size in enumerate(sizes):
        b.put(f"{parts}[{i}]", x.kind, x.of(size))


@step(*ANY)
def cat(b: Sketch, x: Value) -> None:
    others = [b.beside(x) for _ in range(b.one_of(1, 2))]
    total = x.channels + sum(v.channels for v in others)
    if total > LARGEST:
        return
    names = [x.name, *[v.name for v in others]]
    names = b.one_of(names, names[::-1])
    b.put(f"torch.cat([{', '.join(names)}], {b.one_of(x.axis, x.axis - 1 - len(x.shape))})", x.kind, x.of(total))


@step("image", "signal", "tokens")
def cat_places(b: Sketch, x: Value) -> None:
    """Joined along places, read by one layer, and taken apart again."""
    alike = [v for v in b.values if v.kind == x.kind and v.shape == x.shape]
    y, d = b.one_of(*reversed(alike)), 2 if x.kind != "tokens" else 1
    size, out = x.shape[d - 1], b.width()
    shape = tuple(2 * n if i == d - 1 else n for i, n in enumerate(x.shape))
    joined = b.projected(b.put(f"torch.cat([{x.name}, {y.name}], {d})", x.kind, shape, later=False), out, later=False)
    b.put(f"{joined.name}.split({size}, {d})[{b.one_of(0, 1)}]", x.kind, x.of(out))


@step("image", "tokens", "vector")
def cat_batch(b: Sketch, x: Value) -> None:
    alike = [v for v in b.values if v.kind == x.kind and v.shape == x.shape]
    y, out = b.one_of(*reversed(alike)), b.width()
    both = b.projected(b.put(f"torch.cat([{x.name}, {y.name}])", x.kind, x.shape, later=False), out, later=False)
    b.put(f"{both.name}.chunk(2)[{b.one_of(0, 1)}]", x.kind, x.of(out))


@step(*ANY)
def some_channels(b: Sketch, x: Value) -> None:
    c = x.channels
    if c < 2:
        return
    how = b.one_of("slice", "from the end", "strided", "narrow", "permuted", "list", "index_select", "select")
    low = b.upto(0, c - 1)
    high = b.upto(low + 1, c)
    if how == "slice":
        b.put(x.at(f"{low}:{high}"), x.kind, x.of(high - low))
    elif how == "from the end":
        b.put(x.at(f"-{high}:"), x.kind, x.of(high))
    elif how == "strided":
        first, by = b.one_of(0, 1), b.one_of(2, 3)
        b.put(x.at(f"{first}::{by}"), x.kind, x.of(len(range(first, c, by))))
    elif how == "narrow":
        b.put(f"{x.name}.narrow({x.axis}, {low}, {high - low})", x.kind, x.of(high - low))
    elif how == "select":
        b.put(f"{x.name}.select({x.axis}, {low}).unsqueeze({x.axis})", x.kind, x.of(1))
    else:
        order = list(b.draw(st.permutations(range(c))))
        if how == "list":
            order = [b.upto(0, c - 1) for _ in range(b.upto(1, 6))]
        if how == "index_select":
            name = f"order{len(b.parts)}"
            b.parts.append(f's.register_buffer("{name}", torch.tensor({order}))')
            expression = f"torch.index_select({x.name}, {x.axis}, s.{name})"
        else:
            expression = x.at(str(order))
        b.put(expression, x.kind, x.of(len(order)))


@step(*ANY)
def moved(b: Sketch, x: Value) -> None:
    d, c = x.axis, x.channels
    b.same(
        x,
        b.one_of(
            f"{x.name}.flip({d})",
            f"torch.roll({x.name}, {b.upto(-c, c)}, {d})",
            f"torch.cat([{x.at(f'{c // 2}:')}, {x.at(f':{c // 2}')}], {d})",
            f"torch.flip({x.name}, [{len(x.shape)}])",
            f"torch.roll({x.name}, 1, {len(x.shape)})",
        ),
    )


@step(*ANY)
def shuffle(b: Sketch, x: Value) -> None:
    c, d = x.channels, x.axis
    groups = b.one_of(*reversed(divisors(c)))
    before, after = (", ".join(map(str, n)) for n in (x.shape[: d - 1], x.shape[d:]))
    before, after = before and before + ", ", after and ", " + after
    views = (
        f"{x.name}.view(-1, {before}{groups}, {c // groups}{after}).transpose({d}, {d + 1})"
        f".reshape(-1, {before}{c}{after})"
    )
    unflat = f"{x.name}.unflatten({d}, ({groups}, -1)).transpose({d}, {d + 1}).flatten({d}, {d + 1})"
    if x.kind == "image":
        b.same(x, b.one_of(views, unflat, f"F.channel_shuffle({x.name}, {groups})"))
    else:
        b.same(x, b.one_of(unflat, views.replace(".view(", ".reshape(")))


@step(*ANY, traits="shift")
def padded(b: Sketch, x: Value) -> None:
    low, high = b.upto(0, 3), b.upto(0, 3)
    zeros = "0, 0, " * (len(x.shape) - x.axis)
    value = b.one_of("", ", value=0.5")
    b.put(f"F.pad({x.name}, ({zeros}{low}, {high}){value})", x.kind, x.of(x.channels + low + high))


@step(*ANY)
def repeated(b: Sketch, x: Value) -> None:
    if 2 * x.channels > LARGEST:
        return
    ones = ["1"] * (len(x.shape) + 1)
    ones[x.axis] = "2"
    expression = b.one_of(f"{x.name}.repeat_interleave(2, dim={x.axis})", f"{x.name}.repeat({', '.join(ones)})")
    b.put(expression, x.kind, x.of(2 * x.channels))


@step(*ANY)
def gated_halves(b: Sketch, x: Value) -> None:
    if x.channels % 2:
        return
    half, d = x.channels // 2, x.axis
    one, two = x.at(f":{half}"), x.at(f"{half}:")
    expression = b.one_of(
        f"F.glu({x.name}, dim={d})",
        f"F.silu({one}) * {two}",
        f"torch.maximum({x.at('::2')}, {x.at('1::2')})",
        f"(lambda parts: parts[0] * torch.sigmoid(parts[1]))({x.name}.chunk(2, {d}))",
    )
    b.put(expression, x.kind, x.of(half))


@step(*ANY, traits="sum")
def grouped_reduction(b: Sketch, x: Value) -> None:
    """The channel axis viewed as two; one of them is reduced (maxout, split attention)."""
    c, d = x.channels, x.axis
    groups = b.one_of(*divisors(c))
    over = b.one_of(d, d + 1)
    left = c // groups if over == d else groups
    b.put(f"{x.name}.unflatten({d}, ({groups}, {c // groups})).{b.one_of('sum', 'amax')}({over})", x.kind, x.of(left))


@step(*ANY)
def rotated_pairs(b: Sketch, x: Value) -> None:
    """As in rotary embeddings: halves, or neighbours, change places."""
    if x.channels % 2:
        return
    half, d = x.channels // 2, x.axis
    one, two = x.at(f":{half}"), x.at(f"{half}:")
    even, odd = x.at("::2"), x.at("1::2")
    turned = b.one_of(
        f"torch.cat([-{two}, {one}], {d})", f"torch.stack([-{odd}, {even}], {d + 1}).flatten({d}, {d + 1})"
    )
    b.same(x, f"{x.name} * 0.5 + {turned}")


# -- reductions over channels, and what they gate -------------------------------------------------------------------


@step(*ANY)
def gate_of_one(b: Sketch, x: Value) -> None:
    """One value a place, from all channels, that scales them."""
    d = x.axis
    how = b.one_of("layer", "sum", "mean", "amax", "select", "softmax")
    b.traits |= {"sum": {"sum"}, "mean": {"statistic"}}.get(how, set())
    if how == "layer":
        one = f"torch.sigmoid({b.projected(x, 1, later=False).name})"
    elif how == "select":
        place = b.upto(0, x.channels - 1)
        one = x.at(f"{place}:{place + 1}")
    elif how == "softmax":
        one = f"{x.name}.softmax({d})"
    else:
        one = f"torch.tanh({x.name}.{how}({d}, keepdim=True))"
    b.same(x, f"{x.name} * {one}")


@step(*ANY, traits="shift")
def expanded(b: Sketch, x: Value) -> None:
    """A gate of one channel written out to all of them by a number."""
    one = b.projected(x, 1, later=False)
    sizes = ["-1"] * (len(x.shape) + 1)
    sizes[x.axis] = str(x.channels)
    form = b.one_of(f"{one.name}.expand({', '.join(sizes)})", f"{one.name}.expand_as({x.name})")
    b.same(x, f"{x.name} * torch.sigmoid({form})")


@step(*ANY)
def compared(b: Sketch, x: Value) -> None:
    f = b.one_of("{x}.softmax({d})", "{x}.cumsum({d})", "{x}.sort({d}).values", "{x}.log_softmax({d})")
    b.same(x, f.format(x=x.name, d=b.one_of(x.axis, len(x.shape))))
    b.traits.add("shift")


@step(*ANY)
def over_all_channels(b: Sketch, x: Value) -> None:
    """Read once as a number of its own."""
    f = b.one_of("sum", "norm", "mean", "amax")
    b.traits |= {"mean": {"statistic"}, "amax": set()}.get(f, {"sum"})
    b.put(f"{x.name}.{f}({x.axis}, keepdim=True)", x.kind, x.of(1))
