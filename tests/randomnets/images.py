"""Steps of images."""

from __future__ import annotations

from randomnets.sketch import LARGEST, Sketch, Value, pooled, step


@step("image")
def resized(b: Sketch, x: Value) -> None:
    c, h, w = x.shape
    if h % 2 or h < 4 or b.one_of(False, False, True):
        if h > 8:
            return
        mode = b.one_of("nearest", "bilinear")
        b.put(f'F.interpolate({x.name}, scale_factor=2, mode="{mode}")', "image", (c, 2 * h, 2 * w))
    else:
        f = b.one_of("F.max_pool2d({}, 2)", "F.avg_pool2d({}, 2)", "{}[:, :, ::2, ::2]")
        b.put(f.format(x.name), "image", (c, h // 2, w // 2))


@step("image")
def squeeze_excite(b: Sketch, x: Value) -> None:
    c, hidden = x.channels, b.one_of(4, 2, 6)
    if b.one_of(True, False):
        down, up = b.part("down", f"nn.Conv2d({c}, {hidden}, 1)"), b.part("up", f"nn.Conv2d({hidden}, {c}, 1)")
        gate = f"torch.sigmoid({up}(F.relu({down}(F.adaptive_avg_pool2d({x.name}, 1)))))"
    else:
        down, up = b.part("down", f"nn.Linear({c}, {hidden})"), b.part("up", f"nn.Linear({hidden}, {c})")
        view = b.one_of(f".view(-1, {c}, 1, 1)", "[:, :, None, None]", f".view(*{x.name}.shape[:2], 1, 1)")
        gate = f"torch.sigmoid({up}(F.relu({down}({x.name}.mean((2, 3))))){view})"
    b.same(x, f"{x.name} * {gate}")


@step("image", traits="sum ordered")  # a convolution along channels
def efficient_attention(b: Sketch, x: Value) -> None:
    mix = b.part("mix", "nn.Conv1d(1, 1, 3, padding=1)")
    gate = f"{mix}({x.name}.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)[:, :, None, None]"
    b.same(x, f"{x.name} * {gate}")


@step("image", traits="statistic")
def spatial_attention(b: Sketch, x: Value) -> None:
    mix = b.part("mix", "nn.Conv2d(2, 1, 3, padding=1)")
    reduced = f"torch.cat([{x.name}.mean(1, keepdim=True), {x.name}.amax(1, keepdim=True)], 1)"
    b.same(x, f"{x.name} * torch.sigmoid({mix}({reduced}))")


@step("image")
def space_and_depth(b: Sketch, x: Value) -> None:
    c, h, w = x.shape
    if c % 4 == 0 and h <= 8:
        by_hand = (
            f"{x.name}.view(-1, 2, 2, {c // 4}, {h}, {w}).permute(0, 3, 4, 1, 5, 2)"
            f".reshape(-1, {c // 4}, {2 * h}, {2 * w})"
        )
        b.put(b.one_of(f"F.pixel_shuffle({x.name}, 2)", by_hand), "image", (c // 4, 2 * h, 2 * w))
    elif h % 2 == 0 and 4 * c <= LARGEST:
        corners = ", ".join(f"{x.name}[:, :, {i}::2, {j}::2]" for i in (0, 1) for j in (0, 1))
        expression = b.one_of(f"F.pixel_unshuffle({x.name}, 2)", f"torch.cat([{corners}], 1)")
        b.put(expression, "image", (4 * c, h // 2, w // 2))


@step("image")
def windows(b: Sketch, x: Value) -> None:
    """Windows of 2 x 2, a layer on each, and back, with sizes written down."""
    c, h, w = x.shape
    if h % 2:
        return
    fc = b.part("fc", f"nn.Linear({c}, {c})")
    cut = f"{x.name}.view(-1, {c}, {h // 2}, 2, {w // 2}, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, {c})"
    back = f".view(-1, {h // 2}, {w // 2}, 2, 2, {c}).permute(0, 5, 1, 3, 2, 4).reshape(-1, {c}, {h}, {w})"
    b.same(x, f"{fc}({cut.replace('.view(', '.reshape(', 1)}){back}")


@step("image")
def padded_places(b: Sketch, x: Value) -> None:
    c, h, w = x.shape
    mode = b.one_of("constant", "reflect", "replicate") if h > 1 else "constant"
    b.put(f'F.pad({x.name}, (1, 0, 0, 1), "{mode}")', "image", (c, h + 1, w + 1))


@step("image", "signal")
def to_vector(b: Sketch, x: Value) -> None:
    size = 1
    for n in x.shape:
        size *= n
    if size > 768 or b.one_of(True, False):
        pooled(b, x)
        return
    form = b.one_of(".flatten(1)", f".reshape(-1, {size})", f".reshape({x.name}.shape[0], -1)")
    out = b.width()
    b.projected(b.put(f"{x.name}{form}", "vector", (size,), later=False), out)


@step("image")
def to_tokens(b: Sketch, x: Value) -> None:
    c, h, w = x.shape
    if h * w > 64:
        return
    form = b.one_of(".flatten(2).transpose(1, 2)", f".reshape(-1, {c}, {h * w}).permute(0, 2, 1)",
                    f".permute(0, 2, 3, 1).reshape(-1, {h * w}, {c})")  # fmt: skip
    b.put(f"{x.name}{form}", "tokens", (h * w, c))


@step("image")
def to_signal(b: Sketch, x: Value) -> None:
    c, h, w = x.shape
    if h * w <= 64:
        b.put(f"{x.name}{b.one_of('.flatten(2)', f'.reshape(-1, {c}, {h * w})')}", "signal", (c, h * w))


@step("image")
def patches(b: Sketch, x: Value) -> None:
    c, h, w = x.shape
    if h % 2 or 4 * c > LARGEST:
        return
    b.put(f"F.unfold({x.name}, 2, stride=2).transpose(1, 2)", "tokens", (h * w // 4, 4 * c))


@step("image", "signal", traits="statistic")
def gram(b: Sketch, x: Value) -> None:
    """Products of channels with channels."""
    if x.channels > 12:
        return
    flat = f"{x.name}.flatten(2)"
    c = x.channels
    form = b.one_of(f"({flat} @ {flat}.transpose(1, 2))", f'torch.einsum("bcp,bkp->bck", {flat}, {flat})')
    b.put(f"{form} * 0.1", "tokens", (c, c))
