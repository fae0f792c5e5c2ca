"""Names of a file, in any letters -> names that modules, traces and reports can have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

_OTHER = re.compile(r"[^\w.:/\-]")
_TAKEN = frozenset(dir(nn.Module()))


def plain(name: str) -> str:
    """Letters, digits and ``_ . : / -`` alone: nothing that could be read as code, or end a line.

    >>> plain('conv "1"')
    'conv__1_'
    """
    return _OTHER.sub("_", name)


def tensor_names(names: Iterable[str]) -> dict[str, str]:
    """Each name with the one that a module stores it by: its own, but where a module cannot have that. Dots make paths,
    where no tensor stands on the way.

    >>> tensor_names(["conv.weight", "conv", "", "forward", "a b", "a_b"])
    {'conv.weight': 'conv.weight', 'conv': 'conv_', '': '_', 'forward': 'forward_', 'a b': 'a_b', 'a_b': 'a_b_'}
    """
    found: dict[str, str] = {}
    tensors, folders = set[str](), set[str]()
    for name in names:
        parts = [part + "_" if part in _TAKEN or not part else part for part in plain(name).split(".")]
        while _clashes(parts, tensors, folders):
            parts[-1] += "_"
            if any(".".join(parts[:n]) in tensors for n in range(1, len(parts))):
                parts = ["_".join(parts)]
        found[name] = ".".join(parts)
        tensors.add(found[name])
        folders |= {".".join(parts[:n]) for n in range(1, len(parts))}
    return found


def _clashes(parts: list[str], tensors: set[str], folders: set[str]) -> bool:
    whole = ".".join(parts)
    return whole in tensors | folders or any(".".join(parts[:n]) in tensors for n in range(1, len(parts)))
