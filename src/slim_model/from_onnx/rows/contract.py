"""Layers that sum over channels: convolutions, products of matrices, recurrence, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slim_model.from_onnx.row import Call, Result
from slim_model.from_onnx.rows.windows import Window, padded

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(call: Call) -> Result:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    if weight.dim() - 2 not in _CONV:
        raise call.refusal(f"has {weight.dim() - 2} axes of space; PyTorch has 1 to 3")
    window = Window.of(call, x, tuple(weight.shape[2:]))
    if not window.is_even:  # PyTorch pads both sides alike
        x, window = padded(x, window.pads), window.without_pads()
    convolve: Any = _CONV[len(window.sizes)]
    group = call.attribute("group", 1)
    return convolve(x, weight, bias, window.strides, window.before, window.dilations, group)  # type: ignore[no-any-return]


def conv_transpose(call: Call) -> Result:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    spatial = weight.dim() - 2
    kernel = [int(n) for n in weight.shape[2:]]
    strides = call.attribute("strides") or [1] * spatial
    dilations = call.attribute("dilations") or [1] * spatial
    extra = list(call.attribute("output_padding") or [0] * spatial)
    whole = [(d * (k - 1) + 1) + o for k, d, o in zip(kernel, dilations, extra, strict=True)]
    pads = list(call.attribute("pads") or [0] * 2 * spatial)
    kind, wanted = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    if wanted or kind.startswith("SAME"):
        sizes = [int(n) for n in x.shape[2:]]
        wanted = wanted or [n * s for n, s in zip(sizes, strides, strict=True)]
        total = [s * (n - 1) + w - o for n, s, w, o in zip(sizes, strides, whole, wanted, strict=True)]
        extra = [e + max(0, -n) for e, n in zip(extra, total, strict=True)]  # more than the windows reach
        total = [max(0, n) for n in total]
        small = [n // 2 for n in total]
        large = [n - m for n, m in zip(total, small, strict=True)]
        pads = [*large, *small] if kind == "SAME_LOWER" else [*small, *large]
    before, after = pads[:spatial], pads[spatial:]
    common = [min(b, a) for b, a in zip(before, after, strict=True)]
    valid = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    if not valid or spatial not in _CONV_TRANSPOSE:
        raise call.refusal("has an output padding that PyTorch does not take")
    made = _CONV_TRANSPOSE[spatial](x, weight, bias, strides, common, extra, call.attribute("group", 1), dilations)
    for axis, (b, a, c) in enumerate(zip(before, after, common, strict=True), 2):
        if b != a:  # the rest of the larger side is cut off
            made = made.narrow(axis, b - c, made.shape[axis] - (b - c) - (a - c))
    return made


def gemm(call: Call) -> Result:
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    a = a.t() if call.attribute("transA", 0) else a
    weight = b if call.attribute("transB", 0) else b.t()
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    if c is not None and beta != 1.0:
        c = c * beta
    if alpha == 1.0 and c is not None and c.dim() == 1 and c.shape[0] == weight.shape[0]:
        return F.linear(a, weight, c)
    product = F.linear(a, weight)
    product = product if alpha == 1.0 else product * alpha
    return product if c is None else product + c


def matmul(call: Call) -> Result:
    return torch.matmul(call.tensor(0), call.tensor(1))


def einsum(call: Call) -> Result:
    return torch.einsum(call.attribute("equation"), *call.tensors())


def attention(call: Call) -> Result:
    """Of operator set 23: four axes, no keys from before."""
    if odd := set(call.step.attributes) - {"scale", "is_causal", "softcap", "softmax_precision"}:
        raise call.refusal(f"has {', '.join(sorted(odd))}")
    if any(call.has(place) for place in (4, 5, 6)) or any(call.wants(place) for place in (1, 2, 3)):
        raise call.refusal("keeps keys and values from before")
    if call.attribute("softcap", 0.0) or call.tensor(0).dim() != 4:
        raise call.refusal("has a soft cap, or heads that are not apart")
    q, k, v = (call.tensor(place) for place in range(3))
    causal = bool(call.attribute("is_causal", 0))
    if causal and call.has(3):
        raise call.refusal("has a mask and is causal")
    return F.scaled_dot_product_attention(
        q, k, v, call.optional(3), is_causal=causal, scale=call.attribute("scale"), enable_gqa=q.shape[1] != k.shape[1]
    )


# -- recurrence --------------------------------------------------------------------------------------------------------

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where PyTorch's gates stand in ONNX: (i, f, g, o) in (i, o, f, c); (r, z, n) in (z, r, h)."""
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def recurrent(call: Call) -> Result:
    """LSTM, GRU and RNN with the functions that PyTorch has."""
    kind, direction = call.step.op, call.attribute("direction", "forward")
    activation = _checked_recurrence(call, kind)
    x = call.tensor(0)
    x = x.transpose(0, 1) if call.attribute("layout", 0) else x
    weight, hidden = call.tensor(1), call.tensor(2)
    bias = call.optional(3)
    directions, width = hidden.shape[0], hidden.shape[2]
    flat: list[Tensor] = []
    for d in range(directions):
        flat += [_gates(weight[d], kind), _gates(hidden[d], kind)]
        if bias is not None:
            flat += [_gates(half, kind) for half in bias[d].chunk(2)]
    states = [call.optional(place) for place in ((5, 6) if kind == "LSTM" else (5,))]
    zeros = x.new_zeros(directions, x.shape[1], width)
    states = [zeros if s is None else s.transpose(0, 1) if call.attribute("layout", 0) else s for s in states]
    x = x.flip(0) if direction == "reverse" else x
    options = (bias is not None, 1, 0.0, False, directions == 2, False)
    given: Any = tuple(states) if kind == "LSTM" else states[0]
    run: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": activation}[kind]
    whole, *last = run(x, given, flat, *options)
    whole = whole.flip(0) if direction == "reverse" else whole
    whole = whole.unsqueeze(2) if directions == 1 else whole.unflatten(-1, (directions, width))
    if call.attribute("layout", 0):
        return (whole.transpose(0, 1), *(state.transpose(0, 1) for state in last))
    return (whole.transpose(1, 2), *last)


def _gates(stored: Tensor, kind: str) -> Tensor:
    """Rows in the order of PyTorch's gates."""
    order = _GATES[kind]
    parts = stored.chunk(len(order))
    return torch.cat([parts[place] for place in order]) if len(order) > 1 else stored


def _checked_recurrence(call: Call, kind: str) -> Any:
    """PyTorch's plain recurrence for RNN. Raises InputError for what PyTorch's layers do not have."""
    names = list(call.attribute("activations") or [])
    usual = _USUAL[kind]
    relu = kind == "RNN" and bool(names) and set(names) == {"Relu"}
    scaled = call.attribute("activation_alpha") or call.attribute("activation_beta")
    odd = bool(scaled) or (bool(names) and not relu and names != usual * (len(names) // len(usual)))
    if odd or call.attribute("clip") or call.attribute("input_forget", 0) or call.has(7):
        raise call.refusal("has other activations, peepholes or a clip, which PyTorch's recurrent layers do not have")
    if kind == "GRU" and not call.attribute("linear_before_reset", 0):
        raise call.refusal("resets before its product (linear_before_reset=0), which PyTorch's GRU does not do")
    lengths = call.values[4] if call.has(4) else None
    if lengths is not None and set(call.numbers(4, "lengths")) != {int(call.tensor(0).shape[0])}:
        raise call.refusal("ends its sequences at different places")
    return torch.rnn_relu if relu else torch.rnn_tanh
