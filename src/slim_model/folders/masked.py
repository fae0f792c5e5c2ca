"""What stays of a checkpoint -> the dense model that the folder which is written must equal: layers that read nothing
of what is gone, and no call of layers that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.running import Loaded, load_folder
from slim_model.folders.write import Kept


def masked_dense(kept: Kept) -> Loaded:
    """Loaded by transformers from the dense tensors, masked. Raises SlimError where that fails."""
    checkpoint = kept.plan.checkpoint
    loaded = load_folder(checkpoint.path, checkpoint.dtype, kept.masked())
    layers = layers_of(loaded.model, checkpoint.whole or checkpoint) if checkpoint.gone else {}
    for number in checkpoint.gone:
        layers[number].register_forward_hook(_pass_on, with_kwargs=True)
    return loaded


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
