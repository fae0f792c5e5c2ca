"""The user's own module with smaller layers: a copy of its own classes with sliced parameters.

It is right where the forward computes its sizes; whoever hands it out checks that.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from slim_model.cutting.layers_in_a_row import put_in_a_row
from slim_model.cutting.plain_layers import give_own_classes, make_plain
from slim_model.graph.graph import Factored, Folded
from slim_model.graph.stored_tensors import storage_key


def shrink_module(
    model: nn.Module, tensors: dict[str, Tensor], folded: Iterable[Folded] = (), factored: Iterable[Factored] = ()
) -> nn.Module:
    """A copy of ``model`` (its own classes) that holds ``tensors`` (by name; others are copied as they are).

    Tensors that share memory do so in the copy. Weights that were ``folded`` are plain parameters there; in the place
    of a layer that was ``factored`` stands a Sequential of its factors.
    """
    folded = [weight for weight in folded if weight.name in tensors]
    computed = {weight.name for weight in folded}
    memo: dict[int, Any] = {}
    owned = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    # By memory, not by name: what several parameters share is given under one of their names, and stays shared.
    given = {
        storage_key(owned[name]): tensor for name, tensor in tensors.items() if name in owned and name not in computed
    }
    copies: dict[Hashable, Tensor] = {}
    for tensor in owned.values():
        key = storage_key(tensor)
        if key not in copies:
            copies[key] = given.get(key, tensor).detach().clone()
        new = copies[key]
        if isinstance(tensor, nn.Parameter):
            memo.setdefault(id(tensor), nn.Parameter(new, requires_grad=tensor.requires_grad))
        else:
            memo.setdefault(id(tensor), new)
    for module in model.modules():
        for value in vars(module).values():  # what a hook left there has a gradient, and refuses to be copied
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    with torch.no_grad():  # a TorchScript module copies its own tensors itself, else as values that have a gradient
        result = copy.deepcopy(model, memo)
        for name, tensor in _scripted(result):
            new = copies[storage_key(owned[name])]
            if new.shape == tensor.shape:  # else whoever compares the copy finds that it is not smaller
                tensor.copy_(new)
    for name, parameter in result.named_parameters():
        if name in owned:
            parameter.requires_grad = owned[name].requires_grad
    give_own_classes(result)
    make_plain(result, folded, tensors)
    put_in_a_row(result, factored, tensors)
    for module in result.modules():
        _update_attributes(module)
    return result


def _scripted(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of TorchScript modules in ``model``, by their names there."""
    for prefix, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            yield from module.named_parameters(prefix, recurse=False)
            yield from module.named_buffers(prefix, recurse=False)


def _update_attributes(module: nn.Module) -> None:
    """Sizes that standard layers remember beside their weights."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        _update_recurrent(module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    shape = weight.shape
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        if module.groups > 1 and shape[1] == module.out_channels // module.groups:  # whole groups went
            module.groups = module.groups * shape[0] // module.in_channels
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.groups = _groups_left(module, shape)
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        each = module.num_channels // module.num_groups
        if module.num_groups > each and shape[0] % each == 0:  # then whole groups go
            module.num_groups = shape[0] // each
        module.num_channels = shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape


def _update_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    rows, module.input_size = getattr(module, f"weight_ih{layer}").shape
    gates = 4 if isinstance(module, nn.LSTM | nn.LSTMCell) else 3 if isinstance(module, nn.GRU | nn.GRUCell) else 1
    module.hidden_size = rows // gates
    if getattr(module, "proj_size", 0):
        module.proj_size = len(getattr(module, f"weight_hr{layer}"))


def _groups_left(conv: nn.modules.conv._ConvNd, shape: torch.Size) -> int:
    """Whole groups went where the number of outputs per group is unchanged."""
    per_group = conv.out_channels // conv.groups
    if conv.groups == 1 or shape[1] != conv.in_channels // conv.groups:
        return conv.groups
    return shape[0] // per_group if shape[0] % per_group == 0 else conv.groups
