"""What a checkpoint holds: a model, a state dict, or either somewhere inside a dict."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slim_model.loading.safe_pickle import Inert

#: Where checkpoints keep the model or its state dict, best first.
_KEYS = (
    *("model", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    module: nn.Module | None  # without the wrapper of DataParallel
    state: Mapping[str, torch.Tensor] | None  # of the module, if that is what was saved
    summary: str  # for a message


def checkpoint(held: Any) -> Checkpoint:
    """What ``held``, read from a file, holds of a model."""
    module = _module_in(held)
    state = module.state_dict() if module is not None else _state_in(held)
    if isinstance(held, Mapping):
        summary = f"a dict with {', '.join(str(key) for key in list(held)[:6]) or 'nothing in it'}"
    else:
        summary = f"a {type(held).__name__}"
    return Checkpoint(module, state, summary)


def _module_in(held: Any) -> nn.Module | None:
    if isinstance(held, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _module_in(held.module)
    if isinstance(held, nn.Module):
        return held
    entries = _entries(held) if isinstance(held, dict) else ()
    return next((module for entry in entries if (module := _module_in(entry)) is not None), None)


def _state_in(held: Any) -> Mapping[str, torch.Tensor] | None:
    if isinstance(held, Inert):
        return dict(_inert_state(held, "")) or None
    if not isinstance(held, dict):
        return None
    tensors = {key: value for key, value in held.items() if not str(key).endswith("_extra_state")}
    if tensors and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors.items()):
        return tensors
    return next((state for entry in _entries(held) if (state := _state_in(entry)) is not None), None)


def _entries(held: dict[Any, Any]) -> list[Any]:
    """The values under the names that checkpoints use; else the only entry that could be a model."""
    if named := [held[key] for key in _KEYS if isinstance(held.get(key), dict | nn.Module | Inert)]:
        return named
    others = [
        value
        for value in held.values()
        if isinstance(value, nn.Module)
        or (isinstance(value, dict) and any(str(key).endswith(".weight") for key in value))
    ]
    return others if len(others) == 1 else []


def _inert_state(module: Inert, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What ``state_dict`` of an inert module would be."""
    parameters, buffers, children = (_dict_in(module, name) for name in ("_parameters", "_buffers", "_modules"))
    transient = vars(module).get("_non_persistent_buffers_set") or ()
    for name, tensor in itertools.chain(parameters.items(), buffers.items()):
        if isinstance(tensor, torch.Tensor) and name not in transient:
            yield f"{prefix}{name}", tensor
    for name, child in children.items():
        if isinstance(child, Inert):
            yield from _inert_state(child, f"{prefix}{name}.")


def _dict_in(module: Inert, name: str) -> dict[Any, Any]:
    found = vars(module).get(name)
    return found if isinstance(found, dict) else {}
