"""Draws a net: inputs, steps, outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from randomnets import channels, images, layers, norms, pointwise, tokens, vectors
from randomnets.layers import conv, conv1d, linear
from randomnets.sketch import REGISTERED, RandomNet, Sketch, Value, pooled

SUBJECTS = (layers, norms, pointwise, channels, images, tokens, vectors)
STEPS = {name: REGISTERED[name] for module in SUBJECTS for name in vars(module) if name in REGISTERED}
"""All steps. Their order is part of what a net's number draws."""

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
