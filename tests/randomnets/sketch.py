"""A net being drawn: its values, its layers, its source text; and the table of the steps it may take."""

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
REGISTERED: dict[str, tuple[tuple[str, ...], frozenset[str], Step]] = {}
ANY = ("image", "tokens", "vector", "signal")


def step(*kinds: str, traits: str = "") -> Callable[[Step], Step]:
    """Register a step. ``traits``: ``shift`` (0 does not stay 0), ``sum`` (channels are summed without a weight that
    reads them), ``statistic`` (a statistic over channels that is no module, or may come: channels lie along tokens),
    ``ordered`` (a convolution runs along channels, so that they cannot change places)."""

    def add(function: Step) -> Step:
        REGISTERED[function.__name__] = kinds, frozenset(traits.split()), function
        return function

    return add


def divisors(*numbers: int) -> list[int]:
    return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]


def pooled(b: Sketch, x: Value) -> Value:
    over = {"image": "(2, 3)", "signal": "2", "tokens": "1"}[x.kind]
    return b.put(f"{x.name}.{b.one_of('mean', 'mean', 'amax', 'sum')}({over})", "vector", (x.channels,))
