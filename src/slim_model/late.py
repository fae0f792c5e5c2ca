"""Late: a function that is named by its place and imported when it is first needed.

Tables of names (criteria, allocations, engines, ...) are read to answer ``--help`` or to refuse a wrong name; their
functions need PyTorch, whose import takes seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Late:
    """``place`` is ``package.module:function`` under slim_model."""

    place: str

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"slim_model.{module}"), name)  # type: ignore[no-any-return]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.load()(*arguments, **options)
