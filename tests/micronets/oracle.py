"""The oracle: the dense module with zeros where a removed channel would be read. It shares nothing with the prover."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from micronets.table import Micro
from slim_model.pipeline.compiled import Compiled

TOLERANCE = 1e-4


def outputs_of(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that ``model`` returns; a number counts as a tensor without axes, None as nothing."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*copy.deepcopy(inputs)))
    return [torch.as_tensor(x) for x in leaves if x is not None]


def assert_same(expected: list[Tensor], got: list[Tensor], what: str) -> None:
    assert len(expected) == len(got)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape, what
        error = (a - b).abs().max() / a.abs().max().clamp(min=1e-30)
        assert error <= TOLERANCE, f"{what}: {error:.1e}"


def masked_module(model: nn.Module, row: Micro, result: Compiled) -> nn.Module:
    model = copy.deepcopy(model)
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for group in result.coupling.groups:
        removed = ~result.plan.keep[group.channels]
        read = np.unique([c for part in group.slices if part.role == "reads" for c in part.channel])
        for part in group.slices:
            gone = (part.channel >= 0) & removed[part.channel]
            if part.role != "reads" and row.zeroed != "all":  # read by no parameter: by a product of activations
                gone &= ~np.isin(part.channel, read)
            stored = part.parameter in state or (part.role == "reads" and not part.parameter.startswith("channels_"))
            if gone.any() and stored:  # else a number in the forward, or zeros beside a statistic
                with torch.no_grad():
                    state[part.parameter].index_fill_(part.axis, torch.from_numpy(np.flatnonzero(gone)), 0)
    return model
