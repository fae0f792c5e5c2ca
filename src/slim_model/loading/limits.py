"""How much a file that nobody vouches for may ask of this machine. ``docs/safety.md`` tells users of it.

``--trust-pickle`` lifts all of them. A model that somebody trained stays far below; what goes beyond was made to hang
or to fill the memory, or is better given in another form, which the message names.
"""

from __future__ import annotations

FILE_BYTES = 64 * 2**30
"""Of one file: it is read into memory whole."""

INFLATED_BYTES = 64 * 2**20
"""By which the records of an archive may exceed the archive itself: PyTorch compresses code, never weights."""

PICKLED_VALUES = 2_000_000
"""Instructions of one pickle; a tensor takes some 20."""

HEADER_BYTES = 16 * 2**20
"""Of a safetensors file: names and shapes of 100,000 tensors."""

EXPANDED_BYTES = 256 * 2**20
"""By which tensors may show more numbers than are stored for them (strides of 0), all together."""

MODULES = 100_000
"""Modules of a model, each counted as often as it is named."""

NESTED_VALUES = 1_000_000
"""In one list, tuple or dict of a module, each value counted as often as it is named: tracing looks at all of them."""

EXPRESSION_LETTERS = 2_000
"""Of the formula of a size in an exported program."""

HIGHEST_POWER = 8
"""In such a formula."""

LARGEST_NUMBER = 2**63 - 1
"""In such a formula: a size is a 64-bit number."""


def time_limit(file_bytes: int, typed_bytes: int) -> int:
    """Processor time to open a file and run its model once, on inputs of ``typed_bytes`` that the user asked for:
    9 s, and one more for each 10 MB of the file and for each 250 kB of inputs."""
    return 9 + file_bytes // 10_000_000 + typed_bytes // 250_000


def memory_limit(file_bytes: int, typed_bytes: int) -> int:
    """Bytes for the same, beyond what slim-model takes itself: 1 GiB, 3 times the file, 512 times the inputs."""
    return 2**30 + 3 * file_bytes + 512 * typed_bytes


def value_limit(file_bytes: int, typed_bytes: int, told_bytes: int) -> int:
    """Bytes of one value that the model computes there, or shows by repeating what it has: 128 MiB, 3 times the file,
    512 times the inputs that the user typed, 32 times those that the file tells (up to 16 MiB of them)."""
    return 2**27 + 3 * file_bytes + 512 * typed_bytes + 32 * min(told_bytes, 2**24)
