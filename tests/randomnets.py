"""randomnets: networks drawn at random, as source text first, so that a failure prints as a net one can run.

A net starts from its inputs and takes steps. Each step reads values that are there and adds lines to ``forward`` (and
layers to ``__init__``). A step is one function under ``@step``; the kinds of value it may start from are its arguments.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from micronets import randomised

LARGEST = 48  # channels
AXIS = {"image": 1, "signal": 1, "vector": 1, "tokens": 2}
"""Where the channels are in a value of each kind; axis 0 is the batch."""


@dataclass(frozen=True, slots=True)
class Value:
    """``shape`` is without the batch."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def axis(self) -> int:
        return AXIS[self.kind]

    @property
    def channels(self) -> int:
        return self.shape[self.axis - 1]

    def of(self, channels: int) -> tuple[int, ...]:
        """The shape with another number of channels."""
        return (*self.shape[: self.axis - 1], channels, *self.shape[self.axis :])

    def at(self, index: str) -> str:
        """``v1[:, index]``: some of the channels."""
        return f"{self.name}[{':, ' * self.axis}{index}]"

    @property
    def trailing(self) -> str:
        """What makes a vector of channels line up with the value: ``[:, None, None]``."""
        after = len(self.shape) - self.axis
        return f"[:, {', '.join(['None'] * after)}]" if after else ""


@dataclass(frozen=True, slots=True)
class Layer:
    """A module that a later step may use again."""

    name: str
    made_by: str
    given: tuple[str, tuple[int, ...]]
    out: tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class RandomNet:
    """``traits`` say what a reference by zeros must know: see ``step``."""

    inputs: tuple[Value, ...]
    parts: tuple[str, ...]
    lines: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[str, ...]
    traits: frozenset[str]

    @property
    def source(self) -> str:
        names = ", ".join(v.name for v in self.inputs)
        parts = [f"        {part}\n" for part in self.parts]
        lines = [f"        {line}\n" for line in self.lines]
        return (
            f"class Net(nn.Module):\n    def __init__(s):\n        super().__init__()\n{''.join(parts)}\n"
            f"    def forward(s, {names}):\n{''.join(lines)}        return {', '.join(self.outputs)}\n"
        )

    def build(self) -> nn.Module:
        file = f"<randomnet {hash(self.source) & 0xFFFFFFFF:08x}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "parametrizations": parametrizations}
        exec(compile(self.source, file, "exec"), scope)
        return randomised(scope["Net"]())

    def example(self, batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(batch)
        return tuple(
            torch.randint(0, 20, (batch, *v.shape), generator=generator)
            if v.kind == "words"
            else torch.randn(batch, *v.shape, generator=generator)
            for v in self.inputs
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{v.name}: n x {' x '.join(map(str, v.shape))}" for v in self.inputs)
        return f"# {shapes}\n{self.source}"


# -- drawing --------------------------------------------------------------------------------------------------------


@dataclass
class Sketch:
    """A net being drawn."""

    draw: Callable[[Any], Any]
    values: list[Value] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    traits: set[str] = field(default_factory=set)

    def one_of(self, *options: Any) -> Any:
        """One of them; a failure shrinks towards the first."""
        return options[0] if len(options) == 1 else self.draw(st.sampled_from(options))

    def upto(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def width(self) -> int:
        return int(self.one_of(8, 12, 4, 6, 16, 5, 7, 10))

    def part(self, stem: str, made_by: str) -> str:
        """A new submodule, parameter or buffer; its name with ``s.``."""
        name = f"s.{stem}{len(self.parts)}"
        self.parts.append(f"{name} = {made_by}")
        return name

    def parameter(self, *shape: int) -> str:
        return self.part("p", f"nn.Parameter(torch.zeros({', '.join(map(str, shape))}))")

    def put(self, expression: str, kind: str, shape: tuple[int, ...], *, later: bool = True) -> Value:
        """``vN = expression`` is a new value, which ``later`` steps may read."""
        value = Value(f"v{len(self.lines)}", kind, shape)
        self.lines.append(f"{value.name} = {expression}")
        if later:
            self.values.append(value)
        return value

    def same(self, x: Value, expression: str) -> Value:
        return self.put(expression, x.kind, x.shape)

    def layer(
        self, x: Value, stem: str, made_by: str, kind: str, shape: tuple[int, ...], *, later: bool = True
    ) -> Value:
        """A new module, applied to ``x``."""
        name = self.part(stem, made_by)
        self.layers.append(Layer(name, made_by, (x.kind, x.shape), (kind, shape)))
        return self.put(f"{name}({x.name})", kind, shape, later=later)

    def plain(self, line: str) -> None:
        """A line that makes no value."""
        self.lines.append(line)

    def projected(self, x: Value, channels: int, *, later: bool = True) -> Value:
        """The smallest layer from ``x`` to so many channels at the same places."""
        stem, made_by = {
            "image": ("conv", f"nn.Conv2d({x.channels}, {channels}, 1)"),
            "signal": ("conv", f"nn.Conv1d({x.channels}, {channels}, 1)"),
        }.get(x.kind, ("fc", f"nn.Linear({x.channels}, {channels})"))
        return self.layer(x, stem, made_by, x.kind, x.of(channels), later=later)

    def partner(self, x: Value) -> Value:
        """A value that can be added to ``x``: one that is there, or a projection of one at the same places."""
        alike = [v for v in self.values if v.kind == x.kind and v.shape == x.shape and v is not x]
        if alike and self.one_of(True, False):
            return self.one_of(*alike)
        return self.projected(self.beside(x), x.channels)

    def beside(self, x: Value) -> Value:
        """A value at the same places as ``x``, with any number of channels."""
        return self.one_of(*reversed([v for v in self.values if v.kind == x.kind and v.of(0) == x.of(0)]))


Step = Callable[[Sketch, Value], None]
STEPS: dict[str, tuple[tuple[str, ...], frozenset[str], Step]] = {}
ANY = ("image", "tokens", "vector", "signal")


def step(*kinds: str, traits: str = "") -> Callable[[Step], Step]:
    """Register a step. ``traits``: ``shift`` (0 does not stay 0), ``sum`` (channels are summed without a weight that
    reads them), ``statistic`` (a statistic over channels that is no module, or may come: channels lie along tokens)."""

    def add(function: Step) -> Step:
        STEPS[function.__name__] = kinds, frozenset(traits.split()), function
        return function

    return add


OFTEN = {
    **{"conv": 8, "conv_bn_relu": 8, "linear": 8, "conv1d": 8, "grouped_conv": 4, "two_operands": 4, "split": 4},
    **{"cat": 4, "reuse": 4, "norm": 4, "attention": 4, "mlp_residual": 4, "some_channels": 3, "in_place": 3},
    **{"compared": 1, "normed_weight": 1, "over_all_channels": 1, "gram": 1, "kernel_per_sample": 1, "cat_batch": 1},
}
"""How often a step is drawn, against 2 for the others."""

INPUTS = {
    "image": lambda b, name: Value(name, "image", (b.one_of(3, 1, 4), *[b.one_of(8, 6)] * 2)),
    "tokens": lambda b, name: Value(name, "tokens", (6, 5)),
    "vector": lambda b, name: Value(name, "vector", (10,)),
    "signal": lambda b, name: Value(name, "signal", (3, 9)),
    "words": lambda b, name: Value(name, "words", (6,)),
}


@st.composite
def random_nets(draw: Callable[[Any], Any], longest: int = 12) -> RandomNet:
    b = Sketch(draw)
    inputs = []
    for number in range(b.one_of(1, 1, 1, 2)):
        inputs.append(
            INPUTS[b.one_of("image", "tokens", "image", "vector", "image", "signal", "words")](b, f"x{number}")
        )
        start(b, inputs[-1])
    taken = []
    for _ in range(b.upto(1, longest)):
        x = b.values[max(0, len(b.values) - 1 - b.one_of(0, 0, 0, 0, 0, 0, 1, 1, 2, 4))]
        name = b.one_of(*[n for n, (kinds, _, _) in STEPS.items() if x.kind in kinds for _ in range(OFTEN.get(n, 2))])
        before = len(b.lines)
        STEPS[name][2](b, x)
        if len(b.lines) > before:
            taken.append(name)
            b.traits |= STEPS[name][1]
    backs = b.one_of((0,), (0,), (0, 2), (0, 1, 3))
    ends = [b.values[max(0, len(b.values) - 1 - back)] for back in backs]
    outputs = [finish(b, x) for x in ends]
    return RandomNet(tuple(inputs), tuple(b.parts), tuple(b.lines), tuple(outputs), tuple(taken), frozenset(b.traits))


def start(b: Sketch, x: Value) -> None:
    """What reads an input first: usually a layer."""
    if x.kind == "words":
        width = b.width()
        b.layer(x, "embed", f"nn.Embedding(20, {width})", "tokens", (6, width))
        return
    b.values.append(x)
    if b.one_of(True, True, True, False):
        {"image": conv, "signal": conv1d}.get(x.kind, linear)(b, x)


def finish(b: Sketch, x: Value) -> str:
    """An output: a value as it is, pooled, or behind a last linear layer."""
    ending = b.one_of("head", "head", "head", "pooled", "flat", "raw")
    if ending == "raw":
        return x.name
    if ending == "flat" and len(x.shape) > 1:
        size = 1
        for n in x.shape:
            size *= n
        x = b.put(b.one_of(f"{x.name}.flatten(1)", f"{x.name}.reshape(-1, {size})"), "vector", (size,))
    elif x.kind != "vector":
        x = pooled(b, x)
    return x.name if ending == "pooled" else b.layer(x, "head", f"nn.Linear({x.channels}, 5)", "vector", (5,)).name


def pooled(b: Sketch, x: Value) -> Value:
    over = {"image": "(2, 3)", "signal": "2", "tokens": "1"}[x.kind]
    return b.put(f"{x.name}.{b.one_of('mean', 'mean', 'amax', 'sum')}({over})", "vector", (x.channels,))


# -- layers ---------------------------------------------------------------------------------------------------------


def divisors(*numbers: int) -> list[int]:
    return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]


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


# -- norms ----------------------------------------------------------------------------------------------------------


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


# -- pointwise ------------------------------------------------------------------------------------------------------


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


# -- images ---------------------------------------------------------------------------------------------------------


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


@step("image")
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


# -- tokens ---------------------------------------------------------------------------------------------------------


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


# -- vectors --------------------------------------------------------------------------------------------------------


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
