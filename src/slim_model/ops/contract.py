"""Operators that sum over a channel axis and give new channels to their output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from slim_model.graph.nodes import arguments_of
from slim_model.labels.values import Axis, Value
from slim_model.labels.walk import Walk
from slim_model.ops import layer, linear_form
from slim_model.ops.cut import Cut, Fraction
from slim_model.ops.linear_form import each
from slim_model.ops.row import Op

aten = torch.ops.aten
_SPATIAL = "its axis is spatial, and a convolution runs along it"


def _makes(walk: Walk, out: Axis, bias: Value | None) -> Axis:
    """The channels ``out`` that the layer makes; a bias that no channel of its own belongs to fixes them."""
    return walk.makes(out) if bias is None else walk.makes_alike([out, bias.axes[-1]], "its bias is fixed")


# -- convolution ----------------------------------------------------------------------------------------------------


def conv(walk: Walk, input: Value, weight: Value, bias: Value | None, groups: int, **rest: Any) -> Value:
    """weight is ``(out, in / groups, *kernel)``. Depthwise and grouped forms tie blocks of input and output,
    but for a factor that makes terms of each input."""
    at = len(input.shape) - len(weight.shape) + 1
    channels, (out, taken, *_) = input.axes[at], weight.axes
    image_axes = _image_axes(walk, input, weight, **rest)
    if not _grouped(walk, groups):
        walk.reads(channels, taken)
    elif walk.terms(channels, out, groups):
        pass
    elif walk.blocks((channels, out), groups):
        walk.pin(taken, "the blocks of a grouped convolution keep their width")
        walk.reads(channels)
    else:
        walk.reads(_block(channels, groups), taken)
    out = _makes(walk, out, bias)
    return walk.out((*input.axes[:at], out, *image_axes))


def conv_transpose(walk: Walk, input: Value, weight: Value, bias: Value | None, groups: int, **rest: Any) -> Value:
    """weight is ``(in, out / groups, *kernel)``."""
    at = len(input.shape) - len(weight.shape) + 1
    channels, (taken, given, *_) = input.axes[at], weight.axes
    image_axes = _image_axes(walk, input, weight, **rest)
    walk.reads(channels, taken)
    out = given
    if _grouped(walk, groups):
        if walk.blocks((channels,), groups):
            walk.pin(given, "the blocks of a grouped convolution keep their width")
            assert channels is not None
            out = channels.reshape(groups, -1)[:, :1].expand(-1, weight.shape[1]).reshape(-1)
        elif given is not None:
            out = given.repeat(groups)
    out = _makes(walk, out, bias)
    return walk.out((*input.axes[:at], out, *image_axes))


def _image_axes(
    walk: Walk, input: Value, weight: Value, stride: Any, padding: Any, output_padding: Any = 0, **_: Any
) -> list[Axis]:
    """Spatial axes: labels along one pass where the kernel is 1 there, and are pinned where it is not."""
    count = len(weight.shape) - 2
    paddings, more = ([0] * count if isinstance(p, str) else each(p, count) for p in (padding, output_padding))
    steps = zip(weight.shape[2:], each(stride, count), paddings, more, strict=True)
    apart = [step == (1, 1, 0, 0) for step in steps]
    for axis, alone in zip((*input.axes[-count:], *weight.axes[2:]), apart * 2, strict=True):
        if not alone:
            walk.pin(axis, _SPATIAL)
    return [axis if alone else None for axis, alone in zip(input.axes[-count:], apart, strict=True)]


def _grouped(walk: Walk, groups: int) -> bool:
    """Whether the dense convolution is grouped. The small one may be left with one group, where whole groups go."""
    return bool(walk.choose(lambda: groups > 1))


def any_conv(walk: Walk, transposed: bool, **arguments: Any) -> Value:
    """The one operator behind all convolutions (TorchScript traces, decomposed graphs)."""
    return conv_transpose(walk, **arguments) if transposed else conv(walk, **arguments)


def any_conv_macs(out: Value, transposed: bool, **arguments: Any) -> int:
    return conv_transpose_macs(out, **arguments) if transposed else conv_macs(out, **arguments)


def _block(axis: Axis, count: int) -> Axis:
    return None if axis is None else axis.reshape(count, -1)[0]


def conv_macs(out: Value, weight: Value, **_: Any) -> int:
    """One per output element and weight of its filter (Sze 2017, section III)."""
    return math.prod(out.shape) * math.prod(weight.shape[1:])


def conv_transpose_macs(out: Value, input: Value, weight: Value, **_: Any) -> int:
    return math.prod(input.shape) * math.prod(weight.shape[1:])


def regroup(cut: Cut, node: fx.Node) -> dict[str, Any]:
    """Grouped convolution: where whole groups went, ``groups`` is smaller."""
    arguments = arguments_of(node)
    groups = arguments["groups"]
    if groups == 1 or not cut.choices[node.name][-1]:
        return {}
    source: Value = cut.values[arguments["input"]]
    at = len(source.shape) - len(cut.values[arguments["weight"]].shape) + 1
    left, whole = cut.count(source.axes[at], source.shape[at]), source.shape[at]
    return {"groups": Fraction(groups, left, whole) if isinstance(groups, fx.Node) else groups * left // whole}


# -- matrix products ------------------------------------------------------------------------------------------------


def linear(walk: Walk, input: Value, weight: Value, bias: Value | None = None) -> Value:
    walk.reads(input.axes[-1], weight.axes[-1])
    if len(weight.shape) == 1:
        return walk.out(input.axes[:-1])
    out = _makes(walk, weight.axes[0], bias)
    return walk.out((*input.axes[:-1], out))


def linear_macs(out: Value, weight: Value, **_: Any) -> int:
    return math.prod(out.shape) * weight.shape[-1]


def matmul(walk: Walk, self: Value, other: Value) -> Value:
    """Batch axes line up as in addition; the inner axis is summed."""
    left, right = self, other
    inner = right.axes[-2] if len(right.shape) > 1 else right.axes[-1]
    walk.reads(left.axes[-1], inner)
    batch = [Value(v.shape[:-2], v.axes[:-2]) for v in (left, right)]
    _, axes = (
        walk.meet(batch, "it is multiplied with a batch of fixed size") if any(b.shape for b in batch) else ((), ())
    )
    rows = left.axes[-2:-1]
    columns = (walk.makes(right.axes[-1]),) if len(right.shape) > 1 else ()
    return walk.out((*axes, *rows, *columns))


def matmul_macs(out: Value, self: Value, **_: Any) -> int:
    return math.prod(out.shape) * self.shape[-1]


def mm(walk: Walk, self: Value, mat2: Value) -> Value:
    return matmul(walk, self, mat2)


def mm_macs(out: Value, self: Value, **_: Any) -> int:
    return math.prod(out.shape) * self.shape[-1]


def addmm(walk: Walk, self: Value, **factors: Any) -> Value:
    """self + a @ b (addmm, baddbmm)."""
    left, right = (v for v in factors.values() if isinstance(v, Value))
    product = matmul(walk, left, right)
    _, axes = walk.meet([product, self], "it is added to a value whose positions are fixed")
    return walk.out(axes)


def addmm_macs(out: Value, self: Value, **factors: Any) -> int:
    left = next(v for v in factors.values() if isinstance(v, Value))
    return math.prod(out.shape) * left.shape[-1]


def einsum(walk: Walk, equation: str, tensors: list[Value], **_: Any) -> Value:
    """Axes of one letter agree; letters that do not come out are summed."""
    terms, output = letters(equation, tensors)
    if any(len(set(t)) < len(t) for t in terms):
        for tensor in tensors:
            walk.pin(tensor, "this form of einsum has no rule")
        rank: int = walk.node.meta["val"].dim()
        return walk.out([None] * rank)
    by_letter: dict[str, list[Axis]] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, axis in zip(term, tensor.axes, strict=True):
            by_letter.setdefault(letter, []).append(axis)
    for letter in by_letter.keys() - set(output):
        walk.reads(*by_letter[letter])
    why = "it is multiplied with a value whose positions are fixed"
    return walk.out([walk.makes_alike(by_letter[letter], why) for letter in output])


def letters(equation: str, tensors: list[Value]) -> tuple[list[str], str]:
    """The letters of each operand and of the output: "...c,oc" of ranks 3 and 2 -> ["01c", "oc"], "01o"."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    counts = [len(v.shape) - len(t) + 3 if "..." in t else 0 for t, v in zip(terms, tensors, strict=True)]
    dots = "0123456789"[: max(counts)]
    if not arrow:
        output = "..." * ("..." in inputs) + "".join(sorted(x for x in set(inputs) - set(".,") if inputs.count(x) == 1))
    terms = [t.replace("...", dots[len(dots) - n :]) for t, n in zip(terms, counts, strict=True)]
    return terms, output.replace("...", dots)


def einsum_macs(out: Value, equation: str, tensors: list[Value], **_: Any) -> int:
    sizes: dict[str, int] = {}
    for term, tensor in zip(letters(equation, tensors)[0], tensors, strict=True):
        sizes |= dict(zip(term, tensor.shape, strict=False))
    return math.prod(sizes.values()) if len(tensors) > 1 else 0


def tensordot(walk: Walk, self: Value, other: Value, dims_self: list[int], dims_other: list[int], **_: Any) -> Value:
    mine = [d % len(self.shape) for d in dims_self]
    theirs = [d % len(other.shape) for d in dims_other]
    for i, j in zip(mine, theirs, strict=True):
        walk.reads(self.axes[i], other.axes[j])
    rows = [a for i, a in enumerate(self.axes) if i not in mine]
    return walk.out((*rows, *[walk.makes(a) for j, a in enumerate(other.axes) if j not in theirs]))


def tensordot_macs(out: Value, self: Value, dims_self: list[int], **_: Any) -> int:
    return math.prod(out.shape) * math.prod(self.shape[d] for d in dims_self)


def outer(walk: Walk, self: Value, vec2: Value) -> Value:
    return walk.out((*self.axes, *vec2.axes))


def bilinear(walk: Walk, input1: Value, input2: Value, weight: Value, bias: Value | None = None) -> Value:
    """weight is ``(out, in1, in2)``: sum over both inputs."""
    walk.reads(input1.axes[-1], weight.axes[1])
    walk.reads(input2.axes[-1], weight.axes[2])
    others = [Value(v.shape[:-1], v.axes[:-1]) for v in (input1, input2)]
    axes = walk.meet(others, "its other axes are fixed")[1]
    return walk.out((*axes, _makes(walk, weight.axes[0], bias)))


def bilinear_macs(out: Value, weight: Value, **_: Any) -> int:
    return math.prod(out.shape) * math.prod(weight.shape[1:])


# -- attention and look-up ------------------------------------------------------------------------------------------


def attention(walk: Walk, query: Value, key: Value, value: Value, attn_mask: Value | None, **_: Any) -> Value:
    """softmax(q k^T * scale) v over ``(..., heads, tokens, width)``."""
    if walk.node.kwargs.get("enable_gqa"):
        key, value = _shared_out(walk, key, query), _shared_out(walk, value, query)
    walk.reads(query.axes[-1], key.axes[-1])
    walk.agree([key.axes[-2], value.axes[-2]], "tokens are fixed")
    walk.pin(key.axes[-2], "attention is normalised over it")
    parts = [query, key, value] + ([attn_mask] if attn_mask is not None else [])
    batch = [Value(v.shape[:-2], v.axes[:-2]) for v in parts if len(v.shape) > 2]
    axes: tuple[Axis, ...] = (None,) * (len(query.shape) - 2)
    if batch:
        axes = walk.meet(batch, "it is combined with a fixed number of heads")[1]
    if attn_mask is not None and len(attn_mask.shape) > 1:
        for axis in attn_mask.axes[-2:]:
            walk.pin(axis, "tokens are fixed")
    return walk.out((*axes, query.axes[-2], walk.makes(value.axes[-1])))


def _shared_out(walk: Walk, part: Value, query: Value) -> Value:
    """Grouped queries (Ainslie 2023): each head of keys or values serves as many queries as stand in a row."""
    heads, *rest = part.axes[-3:]
    times = walk.choose(lambda: query.shape[-3] // part.shape[-3])
    shape = (*part.shape[:-3], part.shape[-3] * times, *part.shape[-2:])
    return Value(shape, (*part.axes[:-3], None if heads is None else heads.repeat_interleave(times), *rest))


def attention_macs(out: Value, query: Value, key: Value, **_: Any) -> int:
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return pairs * (query.shape[-1] + out.shape[-1])


def rescale(cut: Cut, node: fx.Node) -> dict[str, Any]:
    """Attention's default scale follows the width of a head: the small graph is given that of the dense width."""
    arguments = arguments_of(node)
    query: Value = cut.values[arguments["query"]]
    if arguments["scale"] is not None or not cut.cuts(Value(query.shape[-1:], query.axes[-1:])):
        return {}
    return {"scale": 1.0 / math.sqrt(query.shape[-1])}


def embedding(walk: Walk, weight: Value, indices: Value, **_: Any) -> Value:
    walk.pin(weight.axes[0], "it is looked up by the model's input")
    return walk.out((*indices.axes, walk.makes(weight.axes[1])))


def embedding_bag(walk: Walk, weight: Value, **_: Any) -> list[Any]:
    walk.pin(weight.axes[0], "it is looked up by the model's input")
    rest: list[Any] = walk.fixed_outputs()[1:]
    return [walk.out((None, walk.makes(weight.axes[1])), 0), *rest]


def _product(flow: Any, macs: Any = matmul_macs, **columns: Any) -> Op:
    return Op(flow, macs, masks="inputs", kind="matmul", effect="contracts", **columns)


_CONV = Op(conv, conv_macs, regroup, masks="inputs", layer=layer.conv, kind="convolution", effect="contracts",
           linear_form=linear_form.of_convolution)  # fmt: skip
_ANY_CONV = Op(any_conv, any_conv_macs, regroup, masks="inputs", layer=layer.any_conv, kind="convolution",
               effect="contracts", linear_form=linear_form.of_convolution)  # fmt: skip
_TRANSPOSED = Op(conv_transpose, conv_transpose_macs, regroup, masks="inputs", layer=layer.conv_transpose,
                 kind="transposed_convolution", effect="contracts")  # fmt: skip
_LINEAR = Op(linear, linear_macs, masks="inputs", layer=layer.linear, kind="linear", effect="contracts",
             linear_form=linear_form.of_linear)  # fmt: skip

ROWS: dict[Any, Op] = {
    aten.conv1d: _CONV,
    aten.conv2d: _CONV,
    aten.conv3d: _CONV,
    aten.convolution: _ANY_CONV,
    aten._convolution: _ANY_CONV,
    aten.conv_transpose1d: _TRANSPOSED,
    aten.conv_transpose2d: _TRANSPOSED,
    aten.conv_transpose3d: _TRANSPOSED,
    aten.linear: _LINEAR,
    aten.matmul: _product(matmul, layer=layer.matmul, linear_form=linear_form.of_product),
    aten.dot: _product(lambda walk, self, tensor: matmul(walk, self, tensor)),
    aten.mv: _product(lambda walk, self, vec: matmul(walk, self, vec)),
    aten.mm: _product(mm, mm_macs, layer=layer.matmul, linear_form=linear_form.of_product),
    aten.bmm: _product(mm, mm_macs, layer=layer.matmul),
    aten.addmm: _product(addmm, addmm_macs, layer=layer.addmm, linear_form=linear_form.of_sum_and_product),
    aten.baddbmm: _product(addmm, addmm_macs, layer=layer.addmm),
    aten.einsum: Op(einsum, einsum_macs, masks="inputs", kind="einsum", effect="contracts"),
    aten.scaled_dot_product_attention: Op(
        attention, attention_macs, rescale, masks="inputs", layer=layer.attention, kind="attention"
    ),
    aten.embedding: Op(embedding, kind="embedding"),
    aten.embedding_bag: Op(embedding_bag, kind="embedding"),
    aten.tensordot: Op(tensordot, tensordot_macs, masks="inputs", effect="contracts"),
    aten.outer: Op(outer, kind="outer_product", effect="contracts"),
    aten.bilinear: Op(bilinear, bilinear_macs, masks="inputs", effect="contracts"),
}
