"""Steps of vectors."""

from __future__ import annotations

from randomnets.sketch import Sketch, Value, divisors, step


@step("vector")
def to_image(b: Sketch, x: Value) -> None:
    c = b.width()
    fc = b.part("fc", f"nn.Linear({x.channels}, {c * 9})")
    form = b.one_of(f".view(-1, {c}, 3, 3)", f".unflatten(1, ({c}, 3, 3))")
    b.put(f"{fc}({x.name}){form}", "image", (c, 3, 3))


@step("vector")
def spread_over_places(b: Sketch, x: Value) -> None:
    images = [v for v in b.values if v.kind == "image"]
    side = f", {images[-1].shape[1]}, {images[-1].shape[2]}" if images else ", 4, 4"
    shape = images[-1].shape[1:] if images else (4, 4)
    b.put(f"{x.name}[:, :, None, None].expand(-1, -1{side})", "image", (x.channels, *shape))


@step("vector", traits="statistic")
def as_tokens(b: Sketch, x: Value) -> None:
    count = b.one_of(*divisors(x.channels))
    b.put(f"{x.name}.{b.one_of('view', 'reshape')}(-1, {count}, {x.channels // count})", "tokens",
          (count, x.channels // count))  # fmt: skip


@step("vector", traits="statistic")
def product_of_vectors(b: Sketch, x: Value) -> None:
    y = b.one_of(*reversed([v for v in b.values if v.kind == "vector"]))
    if x.channels * y.channels > 96:
        return
    how = b.one_of("bilinear", "outer", "cosine")
    if how == "bilinear":
        out = b.width()
        layer = b.part("join", f"nn.Bilinear({x.channels}, {y.channels}, {out})")
        b.put(f"{layer}({x.name}, {y.name})", "vector", (out,))
    elif how == "outer":
        b.put(f"{x.name}.unsqueeze(2) * {y.name}.unsqueeze(1)", "tokens", (x.channels, y.channels))
    elif x.channels == y.channels:
        b.put(f"F.cosine_similarity({x.name}, {y.name}, dim=1).unsqueeze(1)", "vector", (1,))


@step("image")
def scaled_by_vector(b: Sketch, x: Value) -> None:
    """Another branch's vector as scale and shift of each channel."""
    vectors = [v for v in b.values if v.kind == "vector"]
    if not vectors:
        return
    y = b.one_of(*reversed(vectors))
    film = b.projected(y, 2 * x.channels, later=False)
    c = x.channels
    b.same(x, f"{x.name} * (1 + {film.name}[:, :{c}, None, None]) + {film.name}[:, {c}:, None, None]")
    b.traits.add("shift")


@step("image", traits="statistic")
def kernel_per_sample(b: Sketch, x: Value) -> None:
    """The input chooses among kernels: batch and channels share one axis."""
    c, h, w = x.shape
    route, bank = b.part("route", f"nn.Linear({c}, 2)"), b.parameter(2, c * c)
    b.plain(f"k = (torch.sigmoid({route}({x.name}.mean((2, 3)))) @ {bank}).view(-1, {c}, 1, 1)")
    n = f"{x.name}.shape[0]"
    b.same(x, f"F.conv2d({x.name}.reshape(1, -1, {h}, {w}), k, groups={n}).view(-1, {c}, {h}, {w})")
