"""Steps that are layers."""

from __future__ import annotations

from randomnets.sketch import ANY, LARGEST, Sketch, Value, divisors, step


@step("image")
def conv(b: Sketch, x: Value) -> None:
    out, kernel, stride = b.width(), b.one_of(3, 1), b.one_of(1, 1, 1, 2)
    _, h, w = x.shape
    extra = b.one_of("", "", ", bias=False", ', padding_mode="reflect"') if min(h, w) > 1 else ""
    h, w = (h - 1) // stride + 1, (w - 1) // stride + 1
    b.layer(
        x,
        "conv",
        f"nn.Conv2d({x.channels}, {out}, {kernel}, {stride}, {kernel // 2}{extra})",
        "image",
        (out, h, w),
    )


@step("image")
def conv_bn_relu(b: Sketch, x: Value) -> None:
    out = b.width()
    made = f"nn.Sequential(nn.Conv2d({x.channels}, {out}, 3, padding=1), nn.BatchNorm2d({out}), nn.ReLU())"
    b.layer(x, "block", made, "image", x.of(out))


@step("image")
def grouped_conv(b: Sketch, x: Value) -> None:
    out = x.channels * b.one_of(1, 2) if x.channels <= LARGEST // 2 else x.channels
    groups = b.one_of(*reversed(divisors(x.channels, out)))
    b.layer(x, "group", f"nn.Conv2d({x.channels}, {out}, 3, padding=1, groups={groups})", "image", x.of(out))


@step("image")
def transposed_conv(b: Sketch, x: Value) -> None:
    c, h, w = x.shape
    out = b.one_of(b.width(), c)
    groups = b.one_of(*divisors(c, out))
    if h > 8:
        made, shape = f"nn.ConvTranspose2d({c}, {out}, 3, padding=1, groups={groups})", (out, h, w)
    else:
        made, shape = f"nn.ConvTranspose2d({c}, {out}, 2, 2, groups={groups})", (out, 2 * h, 2 * w)
    b.layer(x, "up", made, "image", shape)


@step("signal")
def conv1d(b: Sketch, x: Value) -> None:
    out = b.width()
    groups = b.one_of(*divisors(x.channels, out))
    b.layer(x, "conv", f"nn.Conv1d({x.channels}, {out}, 3, padding=1, groups={groups})", "signal", x.of(out))


@step("tokens", "vector")
def linear(b: Sketch, x: Value) -> None:
    out = b.width()
    b.layer(x, "fc", f"nn.Linear({x.channels}, {out}{b.one_of('', ', bias=False')})", x.kind, x.of(out))


@step("tokens", "vector")
def mlp_residual(b: Sketch, x: Value) -> None:
    hidden = b.width()
    up, down = b.part("up", f"nn.Linear({x.channels}, {hidden})"), b.part("down", f"nn.Linear({hidden}, {x.channels})")
    b.same(x, f"{x.name} + {down}({b.one_of('F.gelu', 'F.relu', 'torch.tanh')}({up}({x.name})))")


@step("tokens", "vector")
def by_parameter(b: Sketch, x: Value) -> None:
    out = b.width()
    how = b.one_of("at", "linear", "einsum", "low rank", "addmm" if x.kind == "vector" else "at")
    if how == "at":
        expression = f"{x.name} @ {b.parameter(x.channels, out)}"
    elif how == "linear":
        expression = f"F.linear({x.name}, {b.parameter(out, x.channels)}, {b.parameter(out)})"
    elif how == "einsum":
        expression = f'torch.einsum("...c,oc->...o", {x.name}, {b.parameter(out, x.channels)})'
    elif how == "low rank":
        low = f"{b.parameter(out, 2)} @ {b.parameter(2, x.channels)}"
        expression = f"F.linear({x.name}, {b.parameter(out, x.channels)} + 0.5 * ({low}))"
    else:
        expression = f"torch.addmm({b.parameter(out)}, {x.name}, {b.parameter(x.channels, out)})"
    b.put(expression, x.kind, x.of(out))


@step("image", "signal")
def einsum_as_conv(b: Sketch, x: Value) -> None:
    out = b.width()
    places = "hw"[: len(x.shape) - 1]
    b.put(f'torch.einsum("bc{places},oc->bo{places}", {x.name}, {b.parameter(out, x.channels)})', x.kind, x.of(out))


@step("image", "tokens", "vector", traits="statistic")
def normed_weight(b: Sketch, x: Value) -> None:
    out = b.width()
    layer = f"nn.Conv2d({x.channels}, {out}, 3, padding=1)" if x.kind == "image" else f"nn.Linear({x.channels}, {out})"
    kind = b.one_of("weight_norm", "spectral_norm")
    b.layer(x, "normed", f"parametrizations.{kind}({layer})", x.kind, x.of(out))


@step(*ANY)
def reuse(b: Sketch, x: Value) -> None:
    """A layer that was used before, once more; or another one with its weight."""
    fit = [layer for layer in b.layers if layer.given == (x.kind, x.shape)]
    if not fit:
        return
    layer = b.one_of(*fit)
    if b.one_of(False, True) and layer.made_by.startswith(("nn.Conv2d", "nn.Linear", "nn.Conv1d")):
        name = b.part("tied", layer.made_by)
        b.parts.append(f"{name}.weight = {layer.name}.weight")
    else:
        name = layer.name
    b.put(f"{name}({x.name})", *layer.out)
