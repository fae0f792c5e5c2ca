"""The names in a pickle that stand for plain data, and how each is made: tensors, NumPy arrays, ordered dicts, sets.

Nothing here imports by a name from the file, and every function takes whatever a hostile file may give it: it makes
data, or raises one of the errors that ``machine.run`` calls damage.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim_model.loading.file_bytes import TooMuch
from slim_model.loading.limits import EXPANDED_BYTES
from slim_model.loading.pickles.machine import Global, Inert, Make, check_key, run

_DTYPES = {
    f"torch.{storage}Storage": getattr(torch, dtype)
    for storage, dtype in {
        "Float": "float32",
        "Double": "float64",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
    }.items()
} | {"torch.storage.UntypedStorage": torch.uint8}
_ARRAY = "numpy.ndarray"
_AXES = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """The memory of tensors, and what is in it."""

    memory: torch.UntypedStorage
    dtype: torch.dtype


@dataclass(slots=True)
class Tensors:
    """Makes tensors, and counts the bytes that they show beyond those that are stored."""

    expanded: int = 0
    makers: Mapping[str, Make] = field(init=False)

    def __post_init__(self) -> None:
        self.makers = _PLAIN | {
            "torch._utils._rebuild_tensor": self.rebuild,
            "torch._utils._rebuild_tensor_v2": self.rebuild,
            "torch._utils._rebuild_tensor_v3": self.rebuild_as,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._utils._rebuild_meta_tensor_no_storage": self.without_values,
            "torch._tensor._rebuild_from_type_v2": self.of_a_class,
            "torch.storage._load_from_bytes": self.nested,
            "torch.nn.parameter.Parameter": _parameter,
        }

    def rebuild(self, stored: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return self._view(stored, offset, size, stride, stored.dtype)

    def rebuild_as(
        self, stored: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
    ) -> Tensor:
        return self._view(stored, offset, size, stride, dtype)

    def _view(self, stored: Any, offset: int, size: Any, stride: Any, dtype: Any) -> Tensor:
        if not isinstance(stored, Stored) or not isinstance(dtype, torch.dtype) or len(size) > _AXES:
            raise TypeError("a tensor without memory, or of too many axes")
        size, stride = tuple(size), tuple(stride)
        self._count(math.prod(size) * dtype.itemsize - stored.memory.nbytes())
        try:
            return torch.empty(0, dtype=dtype).set_(stored.memory, offset, size, stride)  # type: ignore[call-overload,no-any-return]
        except RuntimeError as error:  # sizes that its memory does not have
            raise ValueError(str(error).splitlines()[0]) from error

    def without_values(self, dtype: torch.dtype, size: Any, stride: Any, *_: Any) -> Tensor:
        return torch.empty_strided(tuple(size), tuple(stride), dtype=dtype, device="meta")

    def of_a_class(self, function: Any, _cls: Any, args: Any, _state: Any) -> Any:
        """A subclass of Tensor: what it holds, as a plain one."""
        if not isinstance(function, Global) or "rebuild_tensor" not in function.name:
            return Inert("a tensor of a class")
        return self.makers[function.name](*args)

    def nested(self, content: Any) -> Any:
        """A storage inside a pickle that torch.save did not write: a file of torch.save in a file."""
        return read_stream(_latin(content), self)

    def _count(self, beyond: int) -> None:
        self.expanded += max(0, beyond)
        if self.expanded > EXPANDED_BYTES:
            raise TooMuch("its tensors show far more numbers than the file stores")


def dtype_of(kind: Any) -> torch.dtype:
    """That of a class of storages."""
    return _DTYPES[kind.name]


def memory_of(content: bytes | bytearray | memoryview) -> torch.UntypedStorage:
    """A copy that tensors may write to."""
    if not len(content):
        return torch.UntypedStorage(0)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()


# -- before torch 1.6, and inside other pickles -----------------------------------------------------------------------

MAGIC = 0x1950A86A20F9469CFC6C


def read_stream(content: bytes, tensors: Tensors) -> Any:
    """What torch.save wrote before it wrote zip archives: pickles of a magic number, the protocol, the system, the
    object, and the keys of its storages, each of which follows as a count and its numbers."""
    at = 0
    for _ in range(3):
        _head, at = run(content, at, {}, _none)
    begin, kinds = at, dict[str, torch.dtype]()

    def told(pid: Any) -> Any:
        """In a first pass only of which type each storage is, because the numbers lie behind the object."""
        if pid[0] == "storage":
            kinds[str(pid[2])] = dtype_of(pid[1])
        return Inert("a storage")

    _object, at = run(content, begin, _PLAIN, told)
    keys, at = run(content, at, {}, _none)
    memories = {}
    for key in keys:
        count = int.from_bytes(content[at : at + 8], "little")
        end = at + 8 + count * kinds[str(key)].itemsize
        if end > len(content):
            raise ValueError("its numbers are cut off")
        memories[str(key)] = Stored(memory_of(content[at + 8 : end]), kinds[str(key)])
        at = end

    def stored(pid: Any) -> Any:
        if pid[0] == "module":
            return pid[1]  # the class, which older files store with its source code
        return memories[str(pid[2])]

    value, _ = run(content, begin, tensors.makers, stored)
    return value


def _none(_pid: Any) -> Any:
    raise TypeError("a storage where none can be")


# -- what else is plain -----------------------------------------------------------------------------------------------


def _parameter(data: Any = None, requires_grad: Any = True, *_: Any) -> nn.Parameter:
    data = torch.empty(0) if data is None else data
    if not isinstance(data, Tensor):
        raise TypeError("a parameter that is no tensor")
    return nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


def _encoded(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise TypeError("bytes that are no text")
    return text.encode(encoding)


def _shown(*args: Any) -> Any:
    """A list of values, as a constructor takes it."""
    return args[0] if args else ()


def _keys(*args: Any) -> list[Any]:
    return [check_key(key) for key in _shown(*args)]


def _pairs(*args: Any) -> list[tuple[Any, Any]]:
    shown = _shown(*args)
    return [(check_key(key), value) for key, value in (shown.items() if isinstance(shown, dict) else shown)]


def _array(_cls: Any = None, *_: Any) -> Inert:
    return Inert(_ARRAY)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Inert:
    array = Inert(_ARRAY)
    array.state = (1, shape, dtype, order == "F", _latin(content))
    return array


def _simple(*args: Any) -> Any:
    """A number of NumPy's: ``scalar(dtype, bytes)``."""
    array = np.frombuffer(_latin(args[1]), _numpy_dtype(args[0]))
    return array.reshape(-1)[0].item()


def _latin(content: Any) -> bytes:
    if not isinstance(content, str | bytes | bytearray):
        raise TypeError("an array without bytes")
    return content.encode("latin1") if isinstance(content, str) else bytes(content)


def _numpy_dtype(kind: Any) -> np.dtype[Any]:
    """Of numbers alone: the first argument says the kind and size, the second entry of the state the byte order."""
    name = str(kind.args[0])
    if not (len(name) <= 4 and name[0] in "fiubc" and name[1:].isdigit()):
        raise TypeError("an array of no numbers")
    state = kind.state
    swapped = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    return np.dtype(name).newbyteorder(">" if swapped else "<")


def as_tensor(value: Any) -> Tensor | None:
    """``value`` as a tensor: one, or a NumPy array of numbers; None for all else."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, Inert) or value.name != _ARRAY or not isinstance(value.state, tuple):
        return None
    try:
        _version, shape, dtype, by_columns, content = value.state
        kind = _numpy_dtype(dtype)
        array = np.frombuffer(_latin(content), kind).reshape(tuple(shape), order="F" if by_columns else "C")
        return torch.from_numpy(array.astype(kind.newbyteorder("="), order="C", copy=True))
    except (TypeError, ValueError, IndexError, AttributeError):
        return None


def _constant(value: Any) -> Make:
    return lambda: value


_PLAIN: dict[str, Make] = {
    "collections.OrderedDict": lambda *args: OrderedDict(_pairs(*args)),
    "collections.Counter": lambda *args: Counter(dict(_pairs(*args))),
    "collections.defaultdict": lambda *args: {},
    "collections.deque": lambda *args: list(_shown(*args)),
    "builtins.set": lambda *args: set(_keys(*args)),
    "builtins.frozenset": lambda *args: frozenset(_keys(*args)),
    "builtins.complex": complex,
    "builtins.bytearray": lambda *args: bytearray(_encoded(*args) if args and isinstance(args[0], str) else b""),
    "builtins.bytes": lambda *args: b"",
    "_codecs.encode": _encoded,
    "torch.Size": lambda *args: torch.Size(_shown(*args)),
    "torch.device": lambda *args: torch.device(*(x for x in args if isinstance(x, str | int))),
    "torch.serialization._get_layout": lambda name: torch.strided if name == "torch.strided" else Inert("a layout"),
    **{
        f"numpy.{where}.multiarray.{what}": maker
        for where in ("core", "_core")
        for what, maker in {"_reconstruct": _array, "scalar": _simple}.items()
    },
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.core.numeric._frombuffer": _from_buffer,
}
"""What calling a name makes. Behind ``=`` stands what a name is without a call."""
_PLAIN |= {
    f"=torch.{name}": _constant(value)
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.qscheme)
}
