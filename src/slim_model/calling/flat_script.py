"""A TorchScript module that takes keywords, containers or numbers, as one that takes tensors one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slim_model.calling.arguments import Arguments

_HELD = "scripted_model"
SCRIPT_PREFIX = f"{_HELD}."
"""Before the names of the tensors of a module that ``flat_script`` made."""


def flat_script(model: torch.jit.ScriptModule, arguments: Arguments) -> torch.jit.ScriptModule:
    """A module around ``model`` whose forward takes ``arguments.tensors``, and calls it with ``arguments``."""
    shell = nn.Module()
    shell.add_module(_HELD, model)
    scripted: torch.jit.ScriptModule = torch.jit.script(shell)
    names = iter([f"given_{number}" for number in range(len(arguments.tensors))])
    call = [_code(value, names) for value in arguments.args]
    call += [f"{name}={_code(value, names)}" for name, value in arguments.kwargs.items()]
    given = ", ".join(f"given_{number}" for number in range(len(arguments.tensors)))
    scripted.define(f"def forward(self, {given}):\n    return self.{_HELD}({', '.join(call)})\n")
    return scripted


def _code(value: Any, names: Any) -> str:
    """``value`` as TorchScript is written, its tensors by ``names``."""
    if isinstance(value, Tensor):
        return str(next(names))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_code(item, names)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_code(item, names) for item in value) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_code(item, names)}, " for item in value) + ")"
    return repr(value)
