"""Everything slim-model refuses to do, as one tree of exceptions.

A message says what happened, where, and what to do now; it is printed as it is, without a traceback.
"""

from __future__ import annotations

import linecache


class SlimError(Exception):
    """Root of all errors a user can meet. ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """As it was raised: PyTorch's interpreter of graphs adds its own words to ``args`` of all that passes it."""
        return self.message


class InputError(SlimError):
    """The file, the model, the example input or an option cannot be used as given."""

    exit_code = 2


class BudgetError(SlimError):
    """What was asked for cannot be reached: nothing may be removed, or not enough."""

    exit_code = 3


class GateError(SlimError):
    """The small model is right, but not as accurate or as fast as was asked for. Only the report is written."""

    exit_code = 3


class ProofError(SlimError):
    """The small model was not shown to equal the masked dense one, or the ONNX file to equal the small model."""

    exit_code = 4


class ExportError(SlimError):
    """The small model was made and proven, but PyTorch's exporter cannot write it as ONNX that is valid and runs."""

    exit_code = 5


class InternalError(SlimError):
    """A stage broke its own promise: our bug."""

    exit_code = 1


NO_MEMORY = "can't allocate memory"
"""As PyTorch says it, in a RuntimeError."""


def ensure(kept: bool, stage: str, broken: str) -> None:
    """The promise of a stage, at its end; ``broken`` says what is the case where it is not ``kept``."""
    if not kept:
        raise InternalError(
            f"a fault of slim-model in '{stage}': {broken}. No file was changed. Please report it with the model and "
            "the options."
        )


def first_line(error: BaseException, *, named: bool = False, at_most: int = 300) -> str:
    """The first line of what an exception says, of ``at_most`` characters; ``named``: behind the exception's name.

    One that says nothing, as a bare assertion, gives its name.

    >>> first_line(ValueError("no such layer")), first_line(ValueError("no such layer"), named=True)
    ('no such layer', 'ValueError: no such layer')
    """
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    said = str(error).strip().partition("\n")[0].rstrip()
    return (f"{name}: {said}" if named and said else said or name)[:at_most]


_STATEMENT = 12  # lines of one that are read
_OPENING, _CLOSING = "([{", ")]}"


def whole_statement(file: str, line: int, code: str) -> str:
    """``code``, the first line of a statement at ``line`` of ``file``, with the lines that close its brackets; where
    these cannot be read, it ends in ``...``.

    >>> whole_statement("nowhere.py", 1, "x = f(")
    'x = f(...'
    """
    text = code.strip()
    for number in range(line + 1, line + _STATEMENT):
        if not _is_open(text):
            return text
        text += linecache.getline(file, number).strip()
    return f"{text}..." if _is_open(text) else text


def _is_open(text: str) -> bool:
    return sum(text.count(c) for c in _OPENING) > sum(text.count(c) for c in _CLOSING)
