"""What a layer sums, at some positions of its output, channel by channel.

Convolutions and linear layers give their inputs and weights; so do recurrent layers, of the sum that enters their
gates. Any other reader is run on one channel at a time: it is
linear in the operand, so what comes out is the contribution of that channel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from slim_model.errors import InputError
from slim_model.graph.graph import source_line
from slim_model.graph.nodes import bound, packet_of
from slim_model.ops import recurrent
from slim_model.ranking.evidence.read_sites import Spot
from slim_model.ranking.evidence.sampling import SUMMED, places
from slim_model.ranking.evidence.seen import Patch

aten = torch.ops.aten


def patch(node: fx.Node, spot: Spot, env: dict[fx.Node, Any], *, first: int, samples: int) -> Patch:
    """Inputs, weights and outputs of the reader ``node`` for the channels at ``spot``; outputs are without bias."""
    arguments = fx.map_arg(bound(node), env.__getitem__)
    kind = packet_of(node)
    named = bound(node).get("input") is spot.node
    if kind in (aten.conv1d, aten.conv2d) and named and arguments["input"].dim() == arguments["weight"].dim():
        inputs, weights = _of_convolution(arguments, first)
    elif kind is aten.linear and named and spot.layout.axis == 0 and arguments["weight"].dim() == 2:
        inputs, weights = _of_linear(arguments, first, samples)
    elif kind in recurrent.ROWS and named and spot.layout.axis is not None:
        given = arguments["input"].movedim(spot.layout.axis, 0)
        layer = {"input": given, "weight": recurrent.input_weight(**arguments)}
        inputs, weights = _of_linear(layer, first, samples)
    else:
        return _one_by_one(node, spot, env, first, samples)
    outputs = torch.einsum("sct,oct->so", inputs, weights)
    index = spot.index.to(inputs.device)
    return Patch(_chosen(inputs, index), _chosen(weights, index), outputs)


def _chosen(whole: Tensor, index: Tensor) -> Tensor:
    """``(., axis, tap)`` -> ``(., channel, positions x tap)``"""
    return whole[:, index].flatten(2)


def _of_convolution(arguments: dict[str, Any], first: int) -> tuple[Tensor, Tensor]:
    x, weight = arguments["input"].detach(), arguments["weight"].detach()
    if x.dim() == 3:  # a line is a map of height one
        x, weight = x[:, :, None], weight[:, :, None]
    kernel = weight.shape[2:]
    stride, dilation = (_pair(arguments[k]) for k in ("stride", "dilation"))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = arguments["padding"]
    if padding == "same":
        sides = [n for r in reversed(reach) for n in (r // 2, r - r // 2)]
    else:
        sides = [n for p in reversed(_pair(0 if padding == "valid" else padding, 0)) for n in (p, p)]
    columns = F.unfold(F.pad(x, sides), kernel, tuple(dilation), 0, tuple(stride)).unflatten(1, (x.shape[1], -1))
    at = places(first, len(x), columns.shape[-1], wanted=SUMMED).to(x.device)
    inputs = columns.gather(3, at[:, None, None].expand(-1, *columns.shape[1:3], -1))
    return inputs.movedim(3, 1).flatten(0, 1), _ungrouped(weight.flatten(2), arguments["groups"])


def _pair(sizes: Any, ahead: int = 1) -> list[int]:
    """Sizes for height and width; a line has ``ahead`` for its height."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return [ahead, *sizes] if len(sizes) == 1 else sizes


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution with zeros where a group does not look."""
    if groups == 1:
        return weight
    blocks = torch.block_diag(*torch.ones(groups, 1, 1)).to(weight)  # (groups, groups)
    spread = torch.einsum("goct,gh->gohct", weight.unflatten(0, (groups, -1)), blocks)
    return spread.flatten(2, 3).flatten(0, 1)


def _of_linear(arguments: dict[str, Any], first: int, samples: int) -> tuple[Tensor, Tensor]:
    x, weight = arguments["input"].detach(), arguments["weight"].detach()
    rows = x.reshape(samples, -1, x.shape[-1])
    at = places(first, samples, rows.shape[1], wanted=SUMMED).to(x.device)
    inputs = rows.gather(1, at[..., None].expand(-1, -1, rows.shape[2]))
    return inputs.flatten(0, 1)[..., None], weight[..., None]


def _one_by_one(node: fx.Node, spot: Spot, env: dict[fx.Node, Any], first: int, samples: int) -> Patch:
    whole = env[spot.node].detach()

    def run(operand: Tensor) -> Tensor:
        arguments = fx.map_arg((node.args, node.kwargs), lambda n: operand if n is spot.node else env[n])
        result = node.target(*arguments[0], **arguments[1]).detach()  # type: ignore[operator]
        if result.numel() % samples:
            raise InputError(
                f"samples of a batch are summed at {source_line(node)}, so this criterion cannot rank what is read "
                "there. Use another one."
            )
        return result.reshape(samples, -1)

    nothing = run(torch.zeros_like(whole))
    at = places(first, samples, nothing.shape[1], wanted=SUMMED).to(whole.device)
    added = []
    for positions in spot.index.to(whole.device):
        alone = torch.zeros_like(whole).index_copy_(spot.axis, positions, whole.index_select(spot.axis, positions))
        added.append((run(alone) - nothing).gather(1, at).flatten())
    inputs = torch.stack(added, 1)[..., None]
    outputs = (run(whole) - nothing).gather(1, at).flatten()[:, None]
    return Patch(inputs, inputs.new_ones(1, inputs.shape[1], 1), outputs)
