"""Whole layers: which change the least, and a checkpoint without them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slim_model.errors import BudgetError, InputError
from slim_model.folders.masked import entering, layers_of
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.running import library, run_through


def check_depth(checkpoint: Checkpoint, layers: int, *, has_data: bool) -> None:
    """Raise an error where so many layers cannot go."""
    if not has_data:
        raise InputError(
            "--depth chooses layers by what they do to data: add --data text:FILE, or imagefolder:FOLDER for pictures."
        )
    if any(cut.part for cut in checkpoint.family.cuts):
        raise InputError(
            f"--depth: a {checkpoint.config['model_type']} has two parts, each with layers of its own. "
            "Leave out --depth."
        )
    if layers >= (there := _depth(checkpoint)):
        raise BudgetError(f"--depth {layers} would leave none of {there} layers. Give a smaller number.")


def _depth(checkpoint: Checkpoint) -> int:
    numbers = {int(match[2]) for name in checkpoint.tensors if (match := _pattern(checkpoint).match(name))}
    return len(numbers)


def _pattern(checkpoint: Checkpoint) -> re.Pattern[str]:
    """A tensor's name: what stands ahead of the number of its layer, the number, and the rest."""
    return re.compile(rf"((?:.*\.)?{re.escape(checkpoint.family.cuts[0].layers)}\.)(\d+)(\..*)")


@torch.no_grad()
def influences(model: Any, checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """``(layer,)``: how much each layer turns what passes it, ``1 - mean cos(x, f(x))`` over tokens: the block
    influence of ShortGPT (Men et al., 2024). A layer that adds nothing has 0."""
    depth = _depth(checkpoint)
    turned, seen = torch.zeros(depth, dtype=torch.float64), torch.zeros(depth, dtype=torch.long)

    def watcher(layer: int) -> Callable[..., None]:
        def after(module: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Any], output: Any) -> None:
            after_it = output[0] if isinstance(output, tuple) else output
            cosines = nn.functional.cosine_similarity(entering(inputs, named).double(), after_it.double(), dim=-1)
            turned[layer] += (1 - cosines).sum()
            seen[layer] += cosines.numel()

        return after

    layers = layers_of(model, checkpoint)
    handles = [layers[number].register_forward_hook(watcher(number), with_kwargs=True) for number in range(depth)]
    run_through(model, tokens, handles)
    return turned / seen


def shallower(checkpoint: Checkpoint, model: Any, tokens: Tensor, layers: int) -> Checkpoint:
    """The checkpoint without the ``layers`` of least influence on ``tokens``."""
    found = influences(model, checkpoint, tokens)
    if checkpoint.family.first_stays:
        found[0] = torch.inf
    order = found.argsort(stable=True)
    return without_layers(checkpoint, order[:layers].tolist())


def without_layers(checkpoint: Checkpoint, gone: Sequence[int]) -> Checkpoint:
    """The same checkpoint without the layers ``gone``: those that stay are numbered anew, also in the lists of the
    configuration that have an entry for each layer, which transformers may have made up."""
    family, depth = checkpoint.family, _depth(checkpoint)
    stay = [layer for layer in range(depth) if layer not in set(gone)]
    number = {old: new for new, old in enumerate(stay)}
    tensors, names = {}, {}
    for name, stored in checkpoint.tensors.items():
        match = _pattern(checkpoint).fullmatch(name)
        if match and int(match[2]) not in number:
            continue
        new = f"{match[1]}{number[int(match[2])]}{match[3]}" if match else name
        tensors[new], names[new] = stored, name
    whole = library().AutoConfig.for_model(**checkpoint.config).to_dict()
    config = dict(checkpoint.config) | {family.depth: len(stay)}
    for key in family.per_layer:
        if isinstance(entries := whole.get(key), list) and len(entries) == depth:
            config[key] = [entries[layer] for layer in stay]
    return replace(checkpoint, config=config, tensors=tensors, names=names, whole=checkpoint, gone=tuple(sorted(gone)))
