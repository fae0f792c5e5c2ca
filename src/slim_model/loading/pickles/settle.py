"""A pickled model as it was read, inert -> the real one, of classes that may load and only if it is all data.

No constructor runs: an object of the class is made blank and given its state. What comes out is checked to do what its
class does: a ``forward`` that is its class's, no hooks, names that are names. The names matter because ``torch.export``
and ``torch.fx`` write them into Python code, which is executed.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from slim_model.errors import InputError
from slim_model.loading.file_bytes import TooMuch
from slim_model.loading.libraries.table import is_function, is_setting, is_text, library_with
from slim_model.loading.limits import MODULES, NESTED_VALUES
from slim_model.loading.pickles.machine import Global, Inert

#: Classes whose instances hold generated or compiled code.
_CODE = (torch.fx.GraphModule, torch.jit.ScriptModule)
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(torch.Tensor, torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format, Enum),
)
#: What a submodule, parameter or buffer may be called: nothing that could end a string in generated code.
_NAME = re.compile(r"[\w \-+:/@=,]+")


class Refused(Exception):
    """The pickle asks for something that may not load; ``name`` is the full dotted name of it."""

    def __init__(self, name: str, why: str = "may not load") -> None:
        super().__init__(f"{name} {why}")
        self.name = name


def settle(module: Inert) -> nn.Module:
    """The real module; raises `Refused`, or InputError where its package is not installed."""
    settled = _Settler().settle(module)
    if not isinstance(settled, nn.Module):
        raise Refused(module.name)
    return settled


def children_of(module: Any) -> dict[str, Inert]:
    """The submodules of an inert module, by name."""
    return {name: child for name, child in dict_in(module, "_modules").items() if isinstance(child, Inert)}


def dict_in(module: Inert, name: str) -> dict[Any, Any]:
    attribute = module.attributes.get(name)
    return attribute if isinstance(attribute, dict) else {}


def check_size(module: Any, children: Callable[[Any], dict[str, Any]]) -> None:
    """`TooMuch` where the names of its modules are beyond number: one that is held in two places counts as two, and so
    does all inside it. Depth first without recursion; a module inside itself has no end."""
    counts: dict[int, int] = {}
    path: list[tuple[Any, list[Any]]] = [(module, list(children(module).values()))]
    open_ones = {id(module)}
    while path:
        parent, waiting = path[-1]
        if waiting:
            child = waiting.pop()
            if id(child) in open_ones:
                raise TooMuch("a module holds itself")
            if id(child) not in counts:
                open_ones.add(id(child))
                path.append((child, list(children(child).values())))
            continue
        counts[id(parent)] = 1 + sum(counts[id(child)] for child in children(parent).values())
        if counts[id(parent)] > MODULES:
            raise TooMuch(f"its modules have more than {MODULES:,} names")
        open_ones.discard(id(parent))
        path.pop()


class _Settler:
    """Each object is settled once, so that what was shared stays shared."""

    def __init__(self) -> None:
        self.settled: dict[int, Any] = {}
        self.seen: list[Any] = []  # so that no identity is used twice
        self.sizes: dict[int, int] = {}  # of containers: the values in them, each as often as it is named

    def settle(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if id(value) not in self.settled:
            self.seen.append(value)
            self._settle_new(value)
            self._count(value)
        return self.settled[id(value)]

    def _count(self, value: Any) -> None:
        """`TooMuch` where a container holds values beyond number, as one does that holds another twice, again and
        again, or itself."""
        if not isinstance(value, dict | list | tuple):
            return
        items = list(value.values() if isinstance(value, dict) else value)
        held = [item for item in items if isinstance(item, dict | list | tuple) and not isinstance(item, _PLAIN)]
        if any(id(item) not in self.sizes for item in held):
            raise TooMuch(f"a {type(value).__name__} holds itself")
        size = self.sizes[id(value)] = 1 + sum(self.sizes.get(id(item), 1) for item in items)
        if size > NESTED_VALUES:
            raise TooMuch(f"a {type(value).__name__} in it names more than {NESTED_VALUES:,} values")

    def _settle_new(self, value: Any) -> None:
        if isinstance(value, Global):
            self.settled[id(value)] = _function(value.name) or _class(value.name, nn.Module | Enum)
        elif isinstance(value, Inert):
            self._settle_object(value)
        elif type(value) in (dict, OrderedDict, Counter):
            self.settled[id(value)] = made = type(value)()
            made.update({key: self.settle(item) for key, item in value.items() if self._is_key(key)})
        elif type(value) is list:
            self.settled[id(value)] = made = []
            made.extend(self.settle(item) for item in value)
        elif type(value) is tuple:
            self.settled[id(value)] = tuple(self.settle(item) for item in value)
        elif type(value) in (set, frozenset) and all(isinstance(item, _PLAIN) for item in value):
            self.settled[id(value)] = value
        else:
            raise Refused(f"{type(value).__module__}.{type(value).__qualname__}")

    def _is_key(self, key: Any) -> bool:
        if not isinstance(key, (*_PLAIN, tuple)):
            raise Refused("a dict", "with keys that are objects may not load")
        return True

    def _settle_object(self, value: Inert) -> None:
        if value.name == "functools.partial":
            self.settled[id(value)] = self._partial(value)
            return
        if is_setting(value.name):
            self.settled[id(value)] = held = SimpleNamespace()
            held.__dict__.update(self.settle(value.attributes))
            return
        cls = _class(value.name, nn.Module | Enum)
        if issubclass(cls, Enum):
            if len(value.args) != 1 or not isinstance(value.args[0], _PLAIN):
                raise Refused(value.name)
            self.settled[id(value)] = cls(value.args[0])
            return
        if value.args or value.items or value.entries or value.state is not None:
            raise Refused(value.name, "called with arguments may not load")
        self.settled[id(value)] = made = object.__new__(cls)
        library = library_with(cls.__module__)
        unused = library.training if library else ()
        state = self.settle({key: None if key in unused else item for key, item in value.attributes.items()})
        made.__setstate__(state)
        _check_module(made)

    def _partial(self, value: Inert) -> functools.partial[Any]:
        """Of a class or function that may load, with plain arguments alone."""
        match value.state:
            case (Global() as function, tuple() as args, dict() | None as named, attributes) if not attributes:
                if all(isinstance(v, _PLAIN) for v in (*args, *(named or {}).values())):
                    return functools.partial(self.settle(function), *args, **(named or {}))
        raise Refused("functools.partial", "of anything but a layer and plain arguments may not load")


def _function(name: str) -> Callable[..., Any] | None:
    module, _, attribute = name.rpartition(".")
    if not is_function(module, attribute):
        return None
    function: Callable[..., Any] | None = getattr(_import(module), attribute, None)
    return function


def _class(name: str, kinds: Any) -> type[Any]:
    """The class called ``name`` if it is a layer, or an enum, that may load. Imports only what a library lists."""
    module, _, attribute = name.rpartition(".")
    cls = vars(_import(module)).get(attribute) if _trusted(module) else None
    if not isinstance(cls, type) or not issubclass(cls, kinds) or issubclass(cls, _CODE):
        raise Refused(name)
    if not _trusted(cls.__module__):  # a class that a trusted file imported from elsewhere is judged by its own place
        raise Refused(name)
    return cls


def _trusted(module: str) -> bool:
    return library_with(module) is not None


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        hint = (
            f"install it: pip install {top.replace('_', '-')}"
            if error.name == top
            else "it may be from another version"
        )
        raise InputError(f"the model uses {module}, which cannot be imported ({error}); {hint}") from error


def _check_module(module: nn.Module) -> None:
    """Refuse a module that would not do what its class does, or whose names could be read as code."""
    where = f"{type(module).__module__}.{type(module).__qualname__}"
    for key, value in module.__dict__.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise Refused(where, f"with its own {key!r} may not load")
        if callable(getattr(type(module), key, None)) and not (is_text(key) and type(value) is str):
            raise Refused(where, f"with its own {key!r} may not load")
        if "_hooks" in key and value:
            raise Refused(where, f"with {key} may not load")
    for registry, kind in (
        ("_modules", nn.Module),
        ("_parameters", torch.Tensor),
        ("_buffers", torch.Tensor),
    ):
        registered = module.__dict__.get(registry)
        if not isinstance(registered, dict):
            raise Refused(where, f"without {registry} may not load")
        for key, value in registered.items():
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                raise Refused(where, f"may not load: {key!r} in {registry} is no name")
            if not isinstance(value, kind | None):
                raise Refused(where, f"may not load: {key!r} in {registry} is a {type(value).__name__}")
