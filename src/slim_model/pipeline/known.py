"""What several runs on one model have in common, so that a sweep finds it once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Known:
    """Results by what they follow from. Runs that are given the same one share them."""

    def __init__(self) -> None:
        self._results: dict[Hashable, Any] = {}

    def once(self, what: str, follows_from: Hashable, find: Callable[[], T]) -> T:
        """What ``find`` gives, which was found before where the same ``what`` was asked for with the same reasons."""
        key = (what, follows_from)
        if key not in self._results:
            self._results[key] = find()
        return self._results[key]  # type: ignore[no-any-return]
