"""Read what ``torch.save`` wrote without running anything it says.

``torch.load(weights_only=True)`` interprets the pickle and refuses every name it was not told about. It is
told about the module classes of torch, torchvision and timm, but never given the classes themselves: each name
stands for a blank, which can only become an empty instance. So no constructor runs with arguments from the
file. What comes out is then checked to be data: a module whose ``forward`` is its class's, without hooks, with
names that are names. The names matter because ``torch.export`` and ``torch.fx`` write them into Python code,
which is executed.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from slim_model.errors import InputError

#: A class below one of these that is an ``nn.Module`` may load.
_TRUSTED = ("torch.nn.modules", "torchvision.models", "torchvision.ops", "timm.models", "timm.layers")
#: Wraps another module, and is taken off again.
_WRAPPER = "torch.nn.parallel.data_parallel.DataParallel"
#: Functions that models keep as attributes: pure functions of tensors. Pickle names them by where they live.
_FUNCTIONS = {
    "torch.nn.functional": "celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid "
    "mish prelu relu relu6 rrelu selu sigmoid silu softmax softmin softplus softsign tanh tanhshrink",
    "torch._C._nn": "gelu log_sigmoid softplus",
    "timm.layers.activations": "gelu gelu_tanh hard_mish hard_sigmoid hard_swish mish prelu quick_gelu "
    "sigmoid swish tanh",
}
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


class Inert:
    """What a class becomes when only tensors are wanted: it keeps its state and can do nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _Partial:
    """Stands for ``functools.partial`` while unpickling; `_Settler` makes the real one of a checked class."""

    state: tuple[Any, ...] = ()

    def __new__(cls, function: Any) -> Self:
        return object.__new__(cls)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def unpickle(path: Path, *, inert: bool) -> Any:
    """The object that ``torch.save`` wrote to ``path``, on the CPU; nothing from the file is executed.

    With ``inert`` every class outside torch's own data types loads as `Inert`, so that the tensors of any
    checkpoint can be read whatever else it holds. Without, such a class raises `Refused`. A file that is
    damaged or no pickle raises whatever reading it raised.
    """
    names = globals_in(path)
    stand_ins = _inert_stand_ins(names) if inert else _stand_ins(names)
    try:
        # opened here, because torch.load goes by the name of a file rather than by its content
        with path.open("rb") as file, torch.serialization.safe_globals(_as_allowed(stand_ins)):
            value = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error)):
            raise Refused(found[1]) from error
        raise
    return value if inert else _Settler(stand_ins).settle(value)


def globals_in(path: Path) -> set[str]:
    """Every ``module.name`` that the pickle in ``path`` mentions, found without interpreting it."""
    names: set[str] = set()
    for opcode, arg, _ in _opcodes(path):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = arg.partition(" ")
            # torch.save writes protocol 2, in which Python 3 modules have their Python 2 names
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            names.add(f"{module}.{name}")
    return names


def _opcodes(path: Path) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = next(name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl")
            yield from pickletools.genops(archive.read(inside))
    else:
        with path.open("rb") as file:
            for _ in range(4):  # magic number, protocol, system, object; then the tensors
                yield from pickletools.genops(file)


def _inert_stand_ins(names: set[str]) -> dict[str, tuple[Any, ...]]:
    # torch's own data types are found before these
    return {name: (_new_dict,) if name == "collections.defaultdict" else (Inert,) for name in names}


def _stand_ins(names: set[str]) -> dict[str, tuple[Any, ...]]:
    """For each name that may load: what stands for it, and for a class also the class itself."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in names:
        if name == "functools.partial":
            found[name] = (_Partial,)
        elif (function := _function(name)) is not None:
            found[name] = (function,)
        elif (cls := _trusted_class(name)) is not None:
            found[name] = (functools.partial(_member, cls) if issubclass(cls, Enum) else _blank(cls), cls)
    return found


def _as_allowed(stand_ins: dict[str, tuple[Any, ...]]) -> list[Any]:
    """As ``safe_globals`` takes it. The class itself goes under a name with a newline, which no pickle can
    ask for: its instances may be given their state, and it cannot be called."""
    return [(obj, name + "\n" * i) for name, objects in stand_ins.items() for i, obj in enumerate(objects)]


def _function(name: str) -> Callable[..., Any] | None:
    module, _, attribute = name.rpartition(".")
    if attribute not in _FUNCTIONS.get(module, "").split():
        return None
    function: Callable[..., Any] | None = getattr(_import(module), attribute, None)
    return function


def _trusted_class(name: str) -> type | None:
    """The class called ``name`` if it is a layer, or an enum, that may load. Imports only below `_TRUSTED`."""
    module, _, attribute = name.rpartition(".")
    if name != _WRAPPER and not _trusted(module):
        return None
    cls = vars(_import(module)).get(attribute)
    if not isinstance(cls, type) or not issubclass(cls, nn.Module | Enum) or issubclass(cls, _CODE):
        return None
    # a class that a trusted file imported from elsewhere is judged by where it was defined
    return cls if name == _WRAPPER or _trusted(cls.__module__) else None


def _trusted(module: str) -> bool:
    below = any(module.startswith(f"{top}.") for top in _TRUSTED)
    return below and all(part.isidentifier() for part in module.split("."))


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        hint = f"install it: pip install {top}" if error.name == top else "it may be from another version"
        raise InputError(f"the model uses {module}, which cannot be imported ({error}); {hint}") from error


def _member(cls: type[Enum], value: Any) -> Enum:
    return cls(value)


def _blank(cls: type) -> type:
    """A stand-in for ``cls``: called without arguments it gives an empty instance."""

    def empty(_: type, *args: Any) -> Any:
        if args:
            raise Refused(f"{cls.__module__}.{cls.__qualname__}", "called with arguments may not load")
        return object.__new__(cls)

    return type(cls.__name__, (), {"__new__": empty})


def _new_dict(*_: Any) -> dict[Any, Any]:
    return {}


class _Settler:
    """Puts what a stand-in stands for in its place, once everything around it is known to be only data."""

    def __init__(self, stand_ins: dict[str, tuple[Any, ...]]) -> None:
        # the last entry is the class itself, or the function
        self.real = {objects[0]: objects[-1] for objects in stand_ins.values()}
        self.seen: dict[int, Any] = {}

    def settle(self, value: Any) -> Any:
        """``value`` with the stand-ins replaced; containers and modules change in place."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, _Partial):
            return self._settle_partial(value)
        if callable(value) and not isinstance(value, nn.Module) and value is not _Partial and value in self.real:
            return self.real[value]
        if type(value) is tuple:
            return tuple(self.settle(item) for item in value)
        if id(value) not in self.seen:
            self.seen[id(value)] = value
            self._settle_inside(value)
        return value

    def _settle_inside(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            _check_module(value)
            self.settle(value.__dict__)
        elif type(value) in (dict, OrderedDict, Counter):
            for key in value:
                self.settle(key)
                value[key] = self.settle(value[key])
        elif type(value) is list:
            value[:] = [self.settle(item) for item in value]
        elif type(value) is not set or not all(isinstance(item, _PLAIN) for item in value):
            raise Refused(f"{type(value).__module__}.{type(value).__qualname__}")

    def _settle_partial(self, partial: _Partial) -> functools.partial[Any]:
        function, args, kwargs, attributes = partial.state or (None, (), {}, None)
        plain = all(isinstance(value, _PLAIN) for value in (*args, *(kwargs or {}).values()))
        if attributes or not plain or not isinstance(function, Hashable) or function not in self.real:
            raise Refused("functools.partial", "of anything but a layer and plain arguments may not load")
        return functools.partial(self.real[function], *args, **(kwargs or {}))


def _check_module(module: nn.Module) -> None:
    """Refuse a module that would not do what its class does, or whose names could be read as code."""
    where = f"{type(module).__module__}.{type(module).__qualname__}"
    for key, value in module.__dict__.items():
        if not isinstance(key, str) or not key.isidentifier() or callable(getattr(type(module), key, None)):
            raise Refused(where, f"with its own {key!r} may not load")
        if "_hooks" in key and value:
            raise Refused(where, f"with {key} may not load")
    for registry, kind in (
        ("_modules", nn.Module),
        ("_parameters", torch.Tensor),
        ("_buffers", torch.Tensor),
    ):
        for key, value in module.__dict__.get(registry, {0: 0}).items():
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                raise Refused(where, f"may not load: {key!r} in {registry} is no name")
            if not isinstance(value, kind | None):
                raise Refused(where, f"may not load: {key!r} in {registry} is a {type(value).__name__}")
