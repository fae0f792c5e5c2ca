"""Layers of a module that compute their weights -> plain ones, which hold them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from slim_model.graph.graph import Folded, PlainLayer
from slim_model.graph.stored_tensors import storage_key

_HOOKS: tuple[tuple[type[Any], str, Any], ...] = (
    (WeightNorm, "name", remove_weight_norm),
    (SpectralNorm, "name", remove_spectral_norm),
    (prune.BasePruningMethod, "_tensor_name", prune.remove),
)
"""What computes a weight before each forward: its class, the attribute that names the weight, and what removes it."""


def make_plain(model: nn.Module, folded: Iterable[Folded], tensors: dict[str, Tensor]) -> None:
    """Give ``model`` plain parameters (buffers where no source is trained) in place of the weights that it computes.

    ``tensors`` holds their values by name. A parametrization or hook of torch.nn.utils is removed; a module that is one
    layer over its weight is replaced by that layer of torch.nn, whose sizes are still those of the dense model. Others
    stay as they are: who hands ``model`` out checks what it computes.
    """
    sources = dict(model.named_parameters(remove_duplicate=False))
    new: dict[Hashable, Tensor] = {}  # tensors that are one stay one
    for weight in folded:
        trained = [sources[source].requires_grad for source in weight.sources if source in sources]
        value = tensors[weight.name].detach().clone()
        if trained:
            value = nn.Parameter(value, requires_grad=any(trained))
        value = new.setdefault(storage_key(tensors[weight.name]), value)
        path, _, name = weight.name.rpartition(".")
        if (holder := _submodule(model, path)) is not None and _removed(holder, name):
            _hold(holder, name, value)
        elif weight.layer is not None and weight.name == f"{weight.layer.path}.weight":
            _replace(model, weight.layer, weight.shape, value)


def give_own_classes(model: nn.Module) -> None:
    """Give each parametrized module of ``model`` a class of its own: PyTorch's copies share it, and removing a
    parametrization of one of them takes the property from the other."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _removed(holder: nn.Module, name: str) -> bool:
    """Takes away what computes the weight ``name`` of ``holder``; False where nothing of torch.nn.utils does."""
    if parametrize.is_parametrized(holder, name):
        parametrize.remove_parametrizations(holder, name)
        for key, hook in list(holder._load_state_dict_pre_hooks.items()):
            if getattr(getattr(hook, "hook", hook), "__module__", "") == parametrizations.__name__:
                del holder._load_state_dict_pre_hooks[key]  # weight_norm's, which torch (2.15) leaves there
        return True
    for hook in list(holder._forward_pre_hooks.values()):
        for kind, attribute, remove in _HOOKS:
            if isinstance(hook, kind) and getattr(hook, attribute) == name:
                remove(holder, name)
                return True
    return False


def _hold(holder: nn.Module, name: str, value: Tensor) -> None:
    delattr(holder, name)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    else:
        holder.register_buffer(name, value)


def _replace(model: nn.Module, layer: PlainLayer, shape: tuple[int, ...], value: Tensor) -> None:
    """Put the layer that a module is in its place."""
    old = _submodule(model, layer.path)
    if old is None or not isinstance(value, nn.Parameter):
        return
    out, given = shape[:2]
    if layer.kind.startswith("ConvTranspose"):
        out, given = given * layer.options["groups"], out
    elif layer.kind != "Linear":
        given *= layer.options["groups"]
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in layer.options.items()}
    if layer.kind != "Linear":
        options["kernel_size"] = tuple(shape[2:])
    made = getattr(nn, layer.kind)(given, out, bias=layer.bias, device="meta", **options)
    made.weight, made.training = value, old.training
    if layer.bias:
        made.bias = old.bias
    model.set_submodule(layer.path, made)
