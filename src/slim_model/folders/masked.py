"""What stays of a checkpoint -> the dense model that the folder which is written must equal: layers that read nothing
of what is gone, norms over the hidden channels that stay, and no call of layers that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.running import Loaded, load_folder, module_at
from slim_model.folders.stream import narrow
from slim_model.folders.write import Kept


def masked_dense(kept: Kept) -> Loaded:
    """Loaded by transformers from the dense tensors, masked. Raises SlimError where that fails."""
    checkpoint = kept.plan.checkpoint
    loaded = load_folder(checkpoint.path, checkpoint.dtype, kept.masked())
    layers = layers_of(loaded.model, checkpoint.whole or checkpoint) if checkpoint.gone else {}
    for number in checkpoint.gone:
        layers[number].register_forward_hook(_pass_on, with_kwargs=True)
    if hidden := kept.plan.hidden:
        for norm in hidden.norms:
            path = checkpoint.names.get(norm.weight, norm.weight).removesuffix(".weight")
            _narrow_within(module_at(loaded.model, path), kept.units[hidden], hidden.units)
    return loaded


def _narrow_within(norm: nn.Module, kept: Tensor, units: int) -> None:
    """Let a norm of the dense model look at the hidden channels ``kept`` alone, and give zeros for the others."""

    def spread(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.new_zeros((*output.shape[:-1], units)).index_copy(-1, kept, output)

    narrow(norm, kept)
    norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].index_select(-1, kept),))
    norm.register_forward_hook(spread)


def layers_of(model: Any, checkpoint: Checkpoint) -> dict[int, nn.Module]:
    """The model's layers by their numbers. The list has the name that it has in the files, or that in the plural."""
    name = checkpoint.family.cuts[0].layers.rpartition(".")[2]
    lists: list[list[nn.Module]] = [
        [*module]
        for place, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and place.rpartition(".")[2] in (name, f"{name}s")
    ]
    longest = max(lists, key=len)
    return dict(enumerate(longest))


def _pass_on(module: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Any], output: Any) -> Any:
    """What a layer returns that does nothing."""
    x = entering(inputs, named)
    return (x, *output[1:]) if isinstance(output, tuple) else x


def entering(inputs: tuple[Tensor, ...], named: Mapping[str, Any]) -> Tensor:
    """The hidden states that a layer is called with, by place or by name."""
    states: Tensor = inputs[0] if inputs else named["hidden_states"]
    return states
