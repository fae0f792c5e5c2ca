"""How one operator can be timed alone: its kind, the sizes that pruning may change, and all that it cannot.

The functions take what the functions of ``macs`` take: the output and the arguments, as shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim_model.labels.values import Value
from slim_model.ops.linear_form import each, window_of


@dataclass(frozen=True, slots=True)
class LayerShape:
    """``count``: how many examples, rows or matrices it is applied to; it grows with the batch. ``fixed`` are
    numbers whose meaning the kind knows, as are ``widths``:

    ============================  =====================================  ============================================
    kind                          widths                                 fixed
    ============================  =====================================  ============================================
    conv pointwise depthwise      groups, inputs and outputs of a group  size, kernel, stride, padding before and
    grouped                                                              after, dilation, output padding, transposed
    linear                        inputs, outputs
    matmul                        matrices, rows, inner, columns
    attention                     heads, width of a key, of a value      tokens that ask, tokens that answer
    silu gelu hardswish mul       numbers
    layer_norm                    numbers of a row
    ============================  =====================================  ============================================
    """

    kind: str
    count: int
    fixed: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]


def conv(
    out: Value,
    input: Value,
    weight: Value,
    stride: Any,
    padding: Any,
    dilation: Any,
    output_padding: Any = 0,
    transposed: bool = False,
    **_: Any,
) -> LayerShape:
    kernel = weight.shape[2:]
    at = len(input.shape) - len(kernel) - 1
    channels, made = input.shape[at], out.shape[at]
    # A transposed convolution stores (inputs, outputs of a group); a convolution (outputs, inputs of a group).
    if transposed:
        groups = made // max(weight.shape[1], 1)
        block = (channels // max(groups, 1), weight.shape[1])
    else:
        groups = channels // max(weight.shape[1], 1)
        block = (weight.shape[1], made // max(groups, 1))
    window = window_of(kernel, stride, padding, dilation)
    size, more = input.shape[at + 1 :], each(output_padding, len(kernel))
    fixed = (size, kernel, window.stride, window.before, window.after, window.dilation, more, (int(transposed),))
    # Kernels differ by kind, and so do the width steps that are measured for each.
    if groups > 1:
        kind = "depthwise" if block[0] == 1 else "grouped"
    else:
        kind = "pointwise" if math.prod(kernel) == 1 else "conv"
    return LayerShape(kind, math.prod(input.shape[:at]), fixed, (groups, *block))


def conv_transpose(out: Value, **arguments: Any) -> LayerShape:
    return conv(out, **arguments | {"transposed": True})


def any_conv(out: Value, **arguments: Any) -> LayerShape:
    return conv(out, **arguments)


def linear(out: Value, input: Value, weight: Value, **_: Any) -> LayerShape:
    return LayerShape("linear", math.prod(input.shape[:-1]), (), (weight.shape[-1], math.prod(weight.shape[:-1])))


def matmul(out: Value, self: Value, **others: Any) -> LayerShape:
    """With a right side of two axes it is a linear layer, else many small products."""
    right = next(v for v in others.values() if isinstance(v, Value))
    inner, columns = self.shape[-1], right.shape[-1] if len(right.shape) > 1 else 1
    if len(right.shape) <= 2:
        return LayerShape("linear", math.prod(self.shape[:-1]), (), (inner, columns))
    *batch, rows = out.shape[:-1] if len(self.shape) > 1 else (*out.shape[:-1], 1)
    return LayerShape("matmul", batch[0], (), (math.prod(batch[1:]), rows, inner, columns))


def addmm(out: Value, self: Value, **factors: Any) -> LayerShape:
    """self + a @ b."""
    left, right = (v for v in factors.values() if isinstance(v, Value))
    return matmul(out, left, other=right)


def attention(out: Value, query: Value, key: Value, **_: Any) -> LayerShape:
    """``(..., heads, tokens, width)``"""
    *batch, heads = query.shape[:-2] or (1,)
    fixed = ((query.shape[-2],), (key.shape[-2],))
    return LayerShape("attention", math.prod(batch), fixed, (heads, query.shape[-1], out.shape[-1]))


def elementwise(kind: str) -> Callable[..., LayerShape]:
    """Activation, product of two tensors: the only width is how many numbers an example has."""

    def layer(out: Value, **_: Any) -> LayerShape:
        count = out.shape[0] if len(out.shape) > 1 else 1
        return LayerShape(kind, count, (), (math.prod(out.shape) // max(count, 1),))

    return layer


def layer_norm(out: Value, normalized_shape: Any, **_: Any) -> LayerShape:
    rank = len(out.shape) - len(normalized_shape)
    return LayerShape("layer_norm", math.prod(out.shape[:rank]), (), (math.prod(out.shape[rank:]),))
