"""What a row is, and the table of all rows. A row is a forward function under ``@net``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Micro:
    """``inputs(batch)`` are example inputs. ``pinned``: an operator that must be named as the reason of a pin.

    ``zeroed``: which slices of a removed channel the oracle sets to zero in the dense module: those that read it
    ("reads"), or all of them where the weight is itself computed ("all"); "" where a norm over channels or a
    parameter used as data has no such reference. ``ordered``: channels have neighbours, and cannot be permuted.
    """

    forward: Callable[..., Any]
    parts: dict[str, Any]
    inputs: Inputs
    free: float
    pinned: str
    zeroed: str
    ordered: bool

    def build(self) -> nn.Module:
        kind = type(self.forward.__name__, (Net,), {"forward": self.forward})
        return randomised(kind(copy.deepcopy(self.parts)))


class Net(nn.Module):
    """``parts`` become submodules, parameters and buffers; a part that cannot be copied is a function that makes it."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        for name, part in parts.items():
            part = part() if isinstance(part, FunctionType) else part
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


NETS: dict[str, Micro] = {}


def net(
    inputs: Inputs, free: float = 1.0, *, pinned: str = "", zeroed: str = "reads", ordered: bool = False, **parts: Any
) -> Any:
    def add(forward: Any) -> Any:
        assert forward.__name__ not in NETS, forward.__name__
        forward.__code__ = forward.__code__.replace(co_name="forward")  # torch keeps the lines of no other function
        NETS[forward.__name__] = Micro(forward, parts, inputs, free, pinned, zeroed, ordered)
        return forward

    return add


def randomised(model: nn.Module) -> nn.Module:
    """No value at its default: a bias of 0, a scale of 1 and a running mean of 0 hide faults."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or name.startswith("fixed"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif tensor.dim() > 1:
            noise = noise / max(1.0, (tensor.numel() / tensor.shape[0]) ** 0.5)
        else:
            noise = 1 + 0.3 * noise
        tensor.data.copy_(noise)
    return model.eval()
