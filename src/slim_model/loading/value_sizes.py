"""How large a value may get that the model of an untrusted file makes of inputs that nobody typed."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slim_model.errors import NO_MEMORY


class TooLarge(Exception):
    """A value beyond the limit."""


def asks_too_much(error: Exception) -> bool:
    """Whether ``error`` is of the size of a value, which a smaller input would not have."""
    return isinstance(error, TooLarge) or NO_MEMORY in str(error)


class ValuesUpTo(TorchDispatchMode):
    """Within it an operator whose result shows more than ``limit`` bytes, a view as well, raises `TooLarge`; ``first``
    is what the first one said."""

    supports_higher_order_operators = True  # loops and branches: what they make comes out

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.first = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor) and (size := value.numel() * value.element_size()) > self.limit:
                said = f"a value of {'x'.join(map(str, value.shape))} ({size / 1e6:,.0f} MB) in {func}"
                self.first = self.first or said
                raise TooLarge(said)
        return result
