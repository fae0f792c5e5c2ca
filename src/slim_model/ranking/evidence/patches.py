"""What each input channel contributes to a layer's output, at sampled positions (im2col).

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
from slim_model.graph.nodes import arguments_of
from slim_model.ops import kind_of, linear_form_of, recurrent
from slim_model.ops.linear_form import Window
from slim_model.ranking.evidence.read_sites import Positions
from slim_model.ranking.evidence.sampling import Sampling
from slim_model.ranking.evidence.seen import Patch


def patch(node: fx.Node, positions: Positions, env: dict[fx.Node, Any], sampling: Sampling) -> Patch:
    """What the layer ``node`` sums for these channels at the positions of its output that ``sampling`` says: inputs,
    weights, and outputs without bias."""
    sides = _sides(node, positions, env, sampling)
    if sides is None:
        return _one_by_one(node, positions, env, sampling)
    inputs, weights = sides
    outputs = torch.einsum("sct,oct->so", inputs, weights)
    index = positions.index.to(inputs.device)
    return Patch(_chosen(inputs, index), _chosen(weights, index), outputs)


def _sides(
    node: fx.Node, positions: Positions, env: dict[fx.Node, Any], sampling: Sampling
) -> tuple[Tensor, Tensor] | None:
    """``(row, input, tap)`` and ``(output, input, tap)`` of a layer that reads all of that tensor."""
    form, axis = linear_form_of(node), positions.layout.axis
    if form is not None and form.operand is positions.node and form.weight is not positions.node:
        x, weight = env[form.operand].detach(), env[form.weight].detach()
        if form.window is None:
            return _of_linear(x, weight.T if form.turned else weight, sampling) if axis == 0 else None
        if len(form.window.kernel) < 3 and x.dim() == weight.dim():
            return _of_convolution(x, weight, form.window.on_maps(), form.groups, sampling)
    elif kind_of(node) == "recurrent" and axis is not None and arguments_of(node).get("input") is positions.node:
        weight = recurrent.input_weight(**fx.map_arg(arguments_of(node), env.__getitem__))
        return _of_linear(env[positions.node].detach().movedim(axis, 0), weight, sampling)
    return None


def _chosen(whole: Tensor, index: Tensor) -> Tensor:
    """``(., axis, tap)`` -> ``(., channel, positions x tap)``"""
    return whole[:, index].flatten(2)


def _of_convolution(
    x: Tensor, weight: Tensor, window: Window, groups: int, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    if x.dim() == 3:  # a line is a map of height one
        x = x[:, :, None]
    padded = F.pad(x, window.sides)
    columns = F.unfold(padded, window.kernel, window.dilation, 0, window.stride).unflatten(1, (x.shape[1], -1))
    at = sampling.positions(columns.shape[-1], len(x)).to(x.device)
    inputs = columns.gather(3, at[:, None, None].expand(-1, *columns.shape[1:3], -1))
    return inputs.movedim(3, 1).flatten(0, 1), _ungrouped(weight.flatten(2), groups)


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution with zeros where a group does not look."""
    if groups == 1:
        return weight
    blocks = torch.block_diag(*torch.ones(groups, 1, 1)).to(weight)  # (groups, groups)
    spread = torch.einsum("goct,gh->gohct", weight.unflatten(0, (groups, -1)), blocks)
    return spread.flatten(2, 3).flatten(0, 1)


def _of_linear(x: Tensor, weight: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    rows = x.reshape(sampling.samples, -1, x.shape[-1])
    at = sampling.positions(rows.shape[1]).to(x.device)
    inputs = rows.gather(1, at[..., None].expand(-1, -1, rows.shape[2]))
    return inputs.flatten(0, 1)[..., None], weight[..., None]


def _one_by_one(node: fx.Node, positions: Positions, env: dict[fx.Node, Any], sampling: Sampling) -> Patch:
    whole = env[positions.node].detach()

    def run(operand: Tensor) -> Tensor:
        arguments = fx.map_arg((node.args, node.kwargs), lambda n: operand if n is positions.node else env[n])
        result = node.target(*arguments[0], **arguments[1]).detach()  # type: ignore[operator]
        if result.numel() % sampling.samples:
            raise InputError(
                f"samples of a batch are summed at {source_line(node)}, so this criterion cannot rank what is read "
                "there. Use another one."
            )
        return result.reshape(sampling.samples, -1)

    # A bias comes out for an operand of zeros, too: it is no channel's contribution.
    nothing = run(torch.zeros_like(whole))
    at = sampling.positions(nothing.shape[1]).to(whole.device)
    added = []
    for one in positions.index.to(whole.device):
        alone = torch.zeros_like(whole).index_copy_(positions.axis, one, whole.index_select(positions.axis, one))
        added.append((run(alone) - nothing).gather(1, at).flatten())
    inputs = torch.stack(added, 1)[..., None]
    outputs = (run(whole) - nothing).gather(1, at).flatten()[:, None]
    return Patch(inputs, inputs.new_ones(1, inputs.shape[1], 1), outputs)
