"""What a checkpoint holds: models and sets of weights, wherever in it they lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from slim_model.errors import InputError
from slim_model.loading.pickles.data import as_tensor
from slim_model.loading.pickles.machine import Global, Inert
from slim_model.loading.pickles.settle import check_size, children_of, dict_in

#: A key that says that averages over the steps of training lie there (EMA, SWA, a mean teacher): projects run these.
_AVERAGED = re.compile(r"(^|_)ema($|_)|averag|(^|_)swa($|_)|teacher|(^|_)avg($|_)", re.IGNORECASE)
#: Where else checkpoints keep the model or its state dict, best first.
_KEYS = (
    *("model", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params", "generator"),
    *("model_state", "net_state_dict", "state", "g", "netg", "backbone", "encoder", "student"),
)
#: Below these lies nothing that is a model.
_BESIDE = re.compile(r"optim|scheduler|scaler|history|momentum|rng|callbacks|loops|exp_avg|extra_state", re.IGNORECASE)
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
_LEVELS = 8  # of containers that are looked into
_OPTIONS = 256  # at most, that training was told
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, found at ``path`` (``ema.module``; "" for the whole file). ``model``: what holds them, where
    that is a module, inert or real; without the wrapper of DataParallel."""

    path: str
    tensors: Mapping[str, Tensor]
    model: Any = None
    nested: bool = False  # put together of several state dicts

    @property
    def known(self) -> bool:
        """They lie where checkpoints keep what is to be run."""
        return not self.path or any(_is_known(key) for key in self.path.split("."))

    @property
    def averaged(self) -> bool:
        """They lie where checkpoints keep averages over the steps of training."""
        return any(_AVERAGED.search(key) for key in self.path.split("."))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``weights``: best first, by where they lie. ``unknown``: an object where a model should be, of a class that was
    not loaded. ``image_sides``: sizes of pictures in training, where the file says them.
    ``beside``: numbers, texts and dicts of them at the top of the file; of dicts with other things in them the rest."""

    weights: tuple[Weights, ...]
    unknown: str | None
    summary: str  # for a message
    image_sides: tuple[int, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)

    def at(self, key: str | None) -> Checkpoint:
        """Only what lies at ``key`` or below it."""
        if key is None:
            return self
        below = tuple(w for w in self.weights if w.path == key and not w.nested)
        below = below or tuple(w for w in self.weights if f"{w.path}.".startswith(f"{key}."))
        if not below:
            raise InputError(f"holds no weights at --key {key}. It holds {self.listed()}.")
        return replace(self, weights=below)

    def listed(self) -> str:
        """``weights at 'G' (12 tensors), 'D' (8 tensors)``"""
        shown = [
            f"{w.path!r} ({len(w.tensors)} tensors)" if w.path else f"{len(w.tensors)} tensors at its top"
            for w in self.weights
            if not w.nested or len(self.weights) == 1
        ]
        more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return f"weights at {', '.join(shown[:_SHOWN])}{more}" if shown else self.summary


def checkpoint(content: Any) -> Checkpoint:
    """What ``content``, read from a file, has of models and weights."""
    walk = _Search()
    walk.visit(content, "", _LEVELS)
    swapped = _swapped(content)
    order = sorted(
        walk.weights, key=lambda w: (bool(_BESIDE.search(w.path)), w.nested, w.path in swapped, _rank(w.path))
    )
    return Checkpoint(tuple(order), walk.unknown, _summary(content), _image_sides(content), _beside(content))


def _rank(path: str) -> tuple[int, int]:
    """By the best of its keys; weights near the top before those deep inside."""
    keys = path.split(".") if path else []
    ranks = [-1 if _AVERAGED.search(key) else _KEYS.index(key.lower()) for key in keys if _is_known(key)]
    return min(ranks, default=len(_KEYS)), len(keys)


def _is_known(key: str) -> bool:
    return key.lower() in _KEYS or bool(_AVERAGED.search(key))


def _swapped(content: Any) -> set[str]:
    """Where a key that says "averaged" holds the other ones: mmengine swaps them before it saves."""
    top = _items(content) or {}
    return {"ema_state_dict"} if "message_hub" in top or "steps" in (_items(top.get("ema_state_dict")) or {}) else set()


class _Search:
    def __init__(self) -> None:
        self.weights: list[Weights] = []
        self.unknown: str | None = None
        self.seen: dict[int, Any] = {}  # kept, so that no identity is used twice

    def visit(self, value: Any, path: str, levels: int) -> None:
        if levels == 0 or id(value) in self.seen:
            return
        self.seen[id(value)] = value
        model = _unwrapped(value)
        if model is not None:
            self.weights.append(Weights(path, _state_of(model), model))
            return
        # Where this object and all in it hold no weights, a class that is unknown here may be why.
        before = len(self.weights)
        items = _items(value)
        tensors = {} if items is None else _tensors(items)
        if tensors:
            self.weights.append(Weights(path, tensors))
            if averages := _without_dots(tensors):
                self.weights.append(Weights(f"{path}.model_ema".lstrip("."), averages))
        elif items and (nested := _nested(items)):
            self.weights.append(Weights(path, nested, nested=True))
        children = items if items is not None else dict(enumerate(_entries(value)))
        for key, inside in children.items():
            if isinstance(key, str | int):
                self.visit(inside, f"{path}.{key}".lstrip("."), levels - 1)
        if self.unknown is None and isinstance(value, Inert | Global) and len(self.weights) == before:
            is_model_here = not path or _is_known(path.rpartition(".")[2])
            self.unknown = value.name if is_model_here and not getattr(value, "items", None) else None


def _items(value: Any) -> Mapping[Any, Any] | None:
    """Of a dict, or of an object that was one, or that has attributes in place of entries."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Inert) and as_tensor(value) is None:
        return {**value.attributes, **value.items} or None
    return None


def _entries(value: Any) -> list[Any]:
    if isinstance(value, Inert):
        return value.entries
    return list(value) if isinstance(value, list | tuple) else []


def _tensors(items: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors that a dict itself holds, if they are weights: a single number is a loss or a count."""
    pairs = ((key, as_tensor(value)) for key, value in items.items() if isinstance(key, str))
    weights = {key: tensor for key, tensor in pairs if tensor is not None}
    return weights if any(tensor.dim() for tensor in weights.values()) else {}


def _nested(items: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Dicts of nothing but state dicts as one: ``{"encoder": {"weight": x}} -> {"encoder.weight": x}``."""
    nested: dict[str, Tensor] = {}
    for key, value in items.items():
        inside = _items(value)
        tensors = {} if inside is None or _unwrapped(value) is not None else _tensors(inside) or _nested(inside)
        if not isinstance(key, str) or not tensors:
            return {}
        nested |= {f"{key}.{name}": tensor for name, tensor in tensors.items()}
    return nested


def _without_dots(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Latent diffusion keeps averages among the weights, under names without dots: for ``model.a.weight``,
    ``model_ema.aweight``. The same weights with these in place of those; nothing where there are none."""
    averages = {
        name: tensors[short]
        for name in tensors
        if (short := "model_ema." + name.removeprefix("model.").replace(".", "")) in tensors and name != short
    }
    rest = {name: x for name, x in tensors.items() if not name.startswith("model_ema.")}
    return rest | averages if averages else {}


# -- modules ----------------------------------------------------------------------------------------------------------


def _unwrapped(value: Any) -> Any:
    """A module, real or inert, without what training wraps around it; None for anything else."""
    if isinstance(value, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(value.module)
    if isinstance(value, nn.Module):
        return value
    if not isinstance(value, Inert) or not isinstance(value.attributes.get("_modules"), dict):
        return None
    inside = dict_in(value, "_modules").get(_WRAPPERS.get(value.name, ""))
    return value if inside is None or inside is value else _unwrapped(inside)


def _state_of(model: Any) -> Mapping[str, Tensor]:
    """Its state dict; that of an inert module is gathered from its attributes."""
    if isinstance(model, nn.Module):
        check_size(model, lambda m: {k: v for k, v in m._modules.items() if v is not None})
        return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    check_size(model, children_of)
    return dict(_inert_state(model, ""))


def _inert_state(module: Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    transient = module.attributes.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set) else set()
    for name, value in (*dict_in(module, "_parameters").items(), *dict_in(module, "_buffers").items()):
        if isinstance(value, Tensor) and name not in transient:
            yield f"{prefix}{name}", value
    for name, child in children_of(module).items():
        yield from _inert_state(child, f"{prefix}{name}.")


# -- words ------------------------------------------------------------------------------------------------------------


def _summary(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {', '.join(str(key) for key in list(content)[:6]) or 'nothing in it'}"
    return f"a {content.name if isinstance(content, Inert) else type(content).__name__}"


def _beside(content: Any) -> dict[str, Any]:
    top = {key: value for key, value in (_items(content) or {}).items() if isinstance(key, str)}
    plain = {key: value for key, value in top.items() if _is_plain(value)}
    parts = {key: _plain_entries(value) for key, value in top.items() if key not in plain}
    return plain | {key: entries for key, entries in parts.items() if entries}


def _plain_entries(value: Any) -> dict[str, Any]:
    """Of a dict, or an object that was one. Of a long one nothing: each of its entries is looked through."""
    items = value.items if isinstance(value, Inert) else value if isinstance(value, Mapping) else {}
    if len(items) > _OPTIONS:
        return {}
    return {key: item for key, item in items.items() if isinstance(key, str) and _is_plain(item)}


def _is_plain(value: Any) -> bool:
    """Whether it is a number, a text, or containers of them, at most ``_LEVELS`` deep: one that holds itself is not. An
    object is looked at once in a level, so that dicts of twice the same cost no more than one."""
    level = [value]
    for _ in range(_LEVELS):
        inside: dict[int, Any] = {}
        for held in level:
            if type(held) is dict and all(isinstance(key, str) for key in held):
                inside.update((id(item), item) for item in held.values())
            elif type(held) in (list, tuple):
                inside.update((id(item), item) for item in held)
            elif held is not None and type(held) not in (bool, int, float, str):
                return False
        if not inside:
            return True
        level = list(inside.values())
    return False


def _image_sides(content: Any) -> tuple[int, ...]:
    """Ultralytics keeps the arguments of training beside the model."""
    arguments = _items((_items(content) or {}).get("train_args")) or {}
    size = arguments.get("imgsz")
    return (size,) if isinstance(size, int) and 0 < size < 10_000 else ()
