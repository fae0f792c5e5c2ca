"""What the user's own code raises while data is read: said with its place, and never taken for a fault of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from slim_model.errors import InputError, SlimError
from slim_model.loading.input_spec import describe_error


@contextlib.contextmanager
def user_faults(name: str, doing: str) -> Iterator[None]:
    """InputError in place of whatever is raised inside, but for a lack of memory; ``doing``: ``"reading it"``."""
    try:
        yield
    except (SlimError, MemoryError):
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"{name}: {doing} failed with {describe_error(error)}. Mend it there, or give other data."
        ) from error


def made_by(name: str, function: Callable[[], Any]) -> Any:
    """What a callable of the user's gives, which takes no arguments."""
    with user_faults(name, "calling it without arguments"):
        return function()


def read_each(name: str, items: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """What the user's samples or batches give, one after the other."""
    steps: Iterator[Any] | None = None
    while True:
        with user_faults(name, "reading it"):
            try:
                steps = iter(items()) if steps is None else steps
                item = next(steps)
            except StopIteration:
                return
        yield item


def check_is_data(name: str, source: Any) -> None:
    """Raise InputError where ``source`` can be gone through in no way."""
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        what = "nothing" if source is None else f"an object of type {type(source).__name__}"
        raise InputError(f"{name} gave {what}. Give tensors, a data set, or batches that can be gone through.")
