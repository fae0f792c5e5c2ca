"""What is inside a container: one table for what models take and for what they return."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree


class Parts(NamedTuple):
    """The ``values`` in a container by ``names`` (keys, fields or numbers); ``rebuild``: one alike of other values."""

    names: tuple[str, ...]
    values: tuple[Any, ...]
    rebuild: Callable[[list[Any]], Any]


def parts_of(value: Any) -> Parts | None:
    """What ``value`` holds, in its order; None where it is no container that is known."""
    if isinstance(value, Tensor | str | bytes):
        return None
    if isinstance(value, Mapping):  # before data classes: a ModelOutput is both, and holds what is not None
        keys = list(value)
        return Parts(tuple(map(str, keys)), tuple(value[k] for k in keys), lambda new: _mapping(value, keys, new))
    if isinstance(value, tuple):
        fields = _fields(value)
        if fields is None:
            return _numbered(value)
        return Parts(
            fields, tuple(value), lambda new: type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
        )
    if isinstance(value, list | deque):
        return _numbered(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _attributes(value, [field.name for field in dataclasses.fields(value)])
    if hasattr(type(value), "__attrs_attrs__"):
        return _attributes(value, [field.name for field in type(value).__attrs_attrs__])
    if isinstance(value, types.SimpleNamespace):
        return _attributes(value, list(vars(value)))
    return _registered(value) or _attention_cache(value)


def _fields(value: tuple[Any, ...]) -> tuple[str, ...] | None:
    """Of a namedtuple, or of what ``torch.max`` gives; None of a plain tuple."""
    if hasattr(value, "_fields"):
        return tuple(value._fields)
    if type(value).__module__ != "torch.return_types":
        return None
    places = {id(member): name for name, member in vars(type(value)).items() if name.isidentifier()}
    names = [name for name in places.values() if isinstance(vars(type(value))[name], types.MemberDescriptorType)]
    return tuple(names) if len(names) == len(value) else None


def _numbered(value: Any) -> Parts:
    return Parts(tuple(map(str, range(len(value)))), tuple(value), lambda new: type(value)(new))


def _mapping(value: Any, keys: list[Any], new: list[Any]) -> Any:
    if type(value) is dict:
        return dict(zip(keys, new, strict=True))
    alike = copy.copy(value)
    for key, item in zip(keys, new, strict=True):
        alike[key] = item
    return alike


def _attributes(value: Any, names: list[str]) -> Parts:
    names = [name for name in names if hasattr(value, name)]

    def rebuild(new: list[Any]) -> Any:
        alike = copy.copy(value)
        for name, item in zip(names, new, strict=True):
            object.__setattr__(alike, name, item)  # also where it is frozen
        return alike

    return Parts(tuple(names), tuple(getattr(value, name) for name in names), rebuild)


def _registered(value: Any) -> Parts | None:
    """Classes that said to PyTorch what they hold, such as the caches of transformers."""
    row = pytree.SUPPORTED_NODES.get(type(value))
    if row is None:
        return None
    values, context = row.flatten_fn(value)
    names = tuple(map(str, range(len(values))))
    if row.flatten_with_keys_fn is not None:
        keyed, _ = row.flatten_with_keys_fn(value)
        names = tuple(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key, _ in keyed)
    return Parts(names, tuple(values), lambda new: row.unflatten_fn(new, context))


def _attention_cache(value: Any) -> Parts | None:
    """The caches of transformers (4.56 to 5), which hold keys and values for each layer."""
    layers = getattr(value, "layers", None)
    if not type(value).__module__.startswith("transformers.") or not isinstance(layers, list):
        return None
    if not all(hasattr(layer, "keys") and hasattr(layer, "values") for layer in layers):
        return None

    def rebuild(new: list[Any]) -> Any:
        alike = copy.copy(value)
        alike.layers = [copy.copy(layer) for layer in layers]
        for layer, held in zip(alike.layers, new, strict=True):
            layer.keys, layer.values = held["keys"], held["values"]
        return alike

    caches = [{"keys": layer.keys, "values": layer.values} for layer in layers]
    return Parts(tuple(map(str, range(len(layers)))), tuple(caches), rebuild)


class Leaf(NamedTuple):
    """A value that is no container, and the names on the way to it."""

    path: tuple[str, ...]
    value: Any


def leaves_of(value: Any, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Everything in ``value`` that is no container, in its order."""
    parts = parts_of(value)
    if parts is None:
        yield Leaf(path, value)
        return
    for name, item in zip(parts.names, parts.values, strict=True):
        yield from leaves_of(item, (*path, name))


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """A nest such as ``value`` in which ``change`` made, in order, each value that is no container."""
    parts = parts_of(value)
    return change(value) if parts is None else parts.rebuild([replaced(item, change) for item in parts.values])
