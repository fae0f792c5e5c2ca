"""Steps that norm, as modules and by hand."""

from __future__ import annotations

from randomnets.sketch import ANY, Sketch, Value, divisors, step


@step(*ANY)
def norm(b: Sketch, x: Value) -> None:
    rank, c = len(x.shape) - 1, x.channels
    plain = b.one_of("", ", affine=False") if x.kind != "tokens" else ""
    if x.kind == "tokens":
        made = b.one_of(f"nn.LayerNorm({c})", f"nn.RMSNorm({c})", f"nn.LayerNorm({c}, bias=False)")
    elif x.kind == "vector":
        made = b.one_of(f"nn.BatchNorm1d({c}{plain})", f"nn.LayerNorm({c})")
    else:
        groups = b.one_of(*divisors(c))
        made = b.one_of(
            f"nn.BatchNorm{rank}d({c}{plain})",
            f"nn.GroupNorm({groups}, {c})",
            f"nn.InstanceNorm{rank}d({c}, affine=True, track_running_stats=True)",
            f"nn.LayerNorm([{', '.join(map(str, x.shape))}])",
            f"nn.InstanceNorm{rank}d({c})",
        )
    b.layer(x, "norm", made, x.kind, x.shape)


@step("image")
def norm_channels_last(b: Sketch, x: Value) -> None:
    made = b.part("norm", b.one_of(f"nn.LayerNorm({x.channels})", f"nn.RMSNorm({x.channels})"))
    b.same(x, f"{made}({x.name}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")


@step(*ANY, traits="statistic")
def norm_by_hand(b: Sketch, x: Value) -> None:
    scale = f"{b.parameter(x.channels)}{x.trailing}"
    mean = f"({x.name} - {x.name}.mean({x.axis}, keepdim=True))"
    b.same(
        x,
        b.one_of(
            f"{x.name} * torch.rsqrt({x.name}.pow(2).mean({x.axis}, keepdim=True) + 1e-2) * {scale}",
            f"{mean} / ({x.name}.std({x.axis}, keepdim=True) + 0.1) * {scale}",
            f"{mean} * torch.rsqrt({mean}.pow(2).mean({x.axis}, keepdim=True) + 0.1)",
            f"F.layer_norm({x.name}, {x.name}.shape[1:])",
        ),
    )


@step(*ANY, traits="sum")
def normalized(b: Sketch, x: Value) -> None:
    b.same(x, f"F.normalize({x.name}, dim={x.axis})")
