"""Steps that treat every position alike, and writes in place."""

from __future__ import annotations

from randomnets.sketch import ANY, Sketch, Value, step


@step(*ANY)
def activation(b: Sketch, x: Value) -> None:
    f = b.one_of("F.relu", "F.gelu", "torch.tanh", "F.silu", "F.leaky_relu", "F.hardswish", "F.elu", "F.relu6")
    b.same(x, f"{f}({x.name})")


@step(*ANY, traits="shift")
def activation_with_offset(b: Sketch, x: Value) -> None:
    f = b.one_of("torch.sigmoid({})", "F.softplus({})", "1 - {}", "{} + 0.5", "torch.cos({})", "F.hardsigmoid({})")
    b.same(x, f.format(x.name))


@step(*ANY)
def scalar_arithmetic(b: Sketch, x: Value) -> None:
    f = b.one_of("{} * 2", "-{}", "{0} / (1 + {0}.abs())", "{}.double().float()", "{}.clone()", "{}.clamp(-1, 2)",
                 "{}.detach()", "{}.contiguous()", "F.dropout({}, 0.5, s.training)")  # fmt: skip
    b.same(x, f.format(x.name))


@step("image", "signal", "vector")
def prelu(b: Sketch, x: Value) -> None:
    b.layer(x, "act", f"nn.PReLU({b.one_of(x.channels, 1)})", x.kind, x.shape)


@step(*ANY)
def two_operands(b: Sketch, x: Value) -> None:
    y = b.partner(x)
    f = b.one_of("{x} + {y}", "{y} + {x}", "{x} * {y}", "{x} - {y}", "torch.maximum({x}, {y})",
                 "torch.where({x} > 0, {x}, {y})", "torch.stack([{x}, {y}]).sum(0)", "torch.lerp({x}, {y}, 0.3)",
                 "torch.add({x}, {y}, alpha=2)", "torch.addcmul({x}, {y}, {y})")  # fmt: skip
    b.same(x, f.format(x=x.name, y=y.name))


@step(*ANY)
def plus_itself_moved(b: Sketch, x: Value) -> None:
    moved = b.one_of(f"{x.name}.flip({x.axis})", f"torch.roll({x.name}, {b.upto(1, x.channels)}, {x.axis})")
    b.same(x, f"{x.name} {b.one_of('+', '*')} {moved}")


@step(*ANY)
def stored_per_channel(b: Sketch, x: Value) -> None:
    how = b.one_of("* {}", "+ {}")
    form = b.one_of("parameter", "buffer", "literal", "whole", "counted")
    b.traits |= {"shift"} if how == "+ {}" else set()
    if form == "whole":
        value = b.parameter(*x.shape)
    elif form == "buffer":
        name = f"stored{len(b.parts)}"
        b.parts.append(f's.register_buffer("{name}", torch.zeros({x.channels}))')
        value = f"s.{name}{x.trailing}"
    elif form == "literal":
        b.plain(f"w{len(b.lines)} = torch.tensor({[round(0.5 + 0.25 * i, 2) for i in range(x.channels)]})")
        value = f"w{len(b.lines) - 1}{x.trailing}"
    elif form == "counted":
        value = f"torch.arange({x.channels}).float(){x.trailing}"
    else:
        value = f"{b.parameter(x.channels)}{x.trailing}"
    b.same(x, f"{x.name} {how.format(value)}")


@step(*ANY, traits="shift")
def made_from_sizes(b: Sketch, x: Value) -> None:
    sizes = ", ".join(map(str, x.shape))
    made = b.one_of(f"torch.zeros({x.name}.shape[0], {sizes})", f"{x.name}.new_ones({sizes})",
                    f"torch.full(({sizes},), 0.5)", f"torch.ones_like({x.name})", f"torch.zeros({sizes})")  # fmt: skip
    b.same(x, f"{x.name} + {made}")


@step(*ANY)
def in_place(b: Sketch, x: Value) -> None:
    """Written to a value that others may read too."""
    half = max(1, x.channels // 2)
    form = b.one_of("{x}.relu_()", "{x}.mul_(2)", "{x} += {y}", "{x}.mul_({y})", "{part}.zero_()", "{part} = 0.5",
                    "{part}.add_({ypart})", "{part} = {ypart}", "{head} = 0", "{x}.copy_({y})",
                    "{listed} = 0.25")  # fmt: skip
    y = b.partner(x) if "{y" in form else x
    start = b.upto(0, x.channels - half)
    b.traits |= {"shift"} if "0.5" in form or "0.25" in form else set()
    span = f"{start}:{start + half}"
    listed = x.at(f"[0, {x.channels - 1}]")
    first = "[:, 0]" if len(x.shape) == 1 else f"[:{', :' * (len(x.shape) - 1)}, 0]"
    b.plain(form.format(x=x.name, y=y.name, part=x.at(span), ypart=y.at(span), head=f"{x.name}{first}", listed=listed))
    b.values.append(x)
