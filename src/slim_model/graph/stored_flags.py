"""A choice of channels that is stored (a buffer of true and false) is a list of numbers while a model is traced.

``x[:, self.kept]``, ``self.kept.nonzero()``: how many there are is a value, and to a tracer a size that nobody knows.
But what is stored does not change, so its real value is looked at, and what follows from it is a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

_COUNTS = (
    *(Tensor.nonzero, torch.nonzero, torch.argwhere, Tensor.argwhere, torch.unique, Tensor.unique),
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__),
)
"""What they give has as many elements as values say, or is a value."""


class StoredFlags(TorchFunctionMode):
    """While it is entered, what follows from flags and numbers that ``model`` stores alone is taken as its value."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._real = {
            (module, name): buffer.detach().clone()
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.dim() and _chooses(buffer)
        }
        self._known: dict[int, Tensor] = {}
        self._alive: list[Any] = []  # or another tensor would get its id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._real:
            return func(*args, **kwargs)
        if func in (Tensor.__getitem__, torch.ops.aten.index.Tensor):
            args = (args[0], self._numbered(args[1]), *args[2:])
        elif func in (torch.masked_select, Tensor.masked_select) and (value := self._value(args[1])) is not None:
            return args[0][self._numbered((args[1],))] if value.shape == args[0].shape else func(*args, **kwargs)
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not tensors or any(self._value(x) is None for x in tensors):
            return func(*args, **kwargs)
        if _writes(func):  # what a forward counts is no constant
            self._forget(args[0])
            return func(*args, **kwargs)
        real_args, real_kwargs = pytree.tree_map(
            lambda x: self._value(x) if isinstance(x, Tensor) else x, (args, kwargs)
        )
        counts = func in _COUNTS or (func is torch.where and len(args) == 1)
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            real = func(*real_args, **real_kwargs)
        result = pytree.tree_map(_constant, real) if counts else func(*args, **kwargs)
        for made, value in zip(pytree.tree_leaves(result), pytree.tree_leaves(real), strict=False):
            if isinstance(made, Tensor) and isinstance(value, Tensor):
                self._known[id(made)] = value
                self._alive.append(made)
        return result

    def _value(self, x: Any) -> Tensor | None:
        """The real value of ``x``, where it follows from what is stored."""
        for (module, name), real in self._real.items():
            if module._buffers.get(name) is x:
                return real
        return self._known.get(id(x))

    def _forget(self, x: Any) -> None:
        self._known.pop(id(x), None)
        self._real = {place: real for place, real in self._real.items() if place[0]._buffers.get(place[1]) is not x}

    def _numbered(self, index: Any) -> Any:
        """An index in which known flags are the numbers of those that are true."""
        given = index if isinstance(index, tuple | list) else (index,)
        found: list[Any] = []
        for part in given:
            value = self._value(part) if isinstance(part, Tensor) and part.dtype is torch.bool else None
            found += [part] if value is None else map(_constant, _places(value))
        return type(index)(found) if isinstance(index, list) else tuple(found)


def _chooses(buffer: Tensor) -> bool:
    """Flags or numbers, or a mask of 0 and 1 in another type."""
    return not buffer.is_floating_point() or bool(((buffer == 0) | (buffer == 1)).all())


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name[2] == "i" and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def _places(flags: Tensor) -> tuple[Tensor, ...]:
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        return flags.nonzero(as_tuple=True)


def _constant(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        numbers = value.tolist()
    return torch.tensor(numbers, dtype=value.dtype)
