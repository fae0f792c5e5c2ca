"""What is known of one operator of ONNX, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.from_onnx.known import Known


class Unreadable(InputError):
    """A node that no row can read as operators of PyTorch."""


Value = Tensor | Known | list[Any]
"""A list is a sequence of ONNX."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node of the file. ``line``: as reports cite it, behind its ``number`` and ``name``; ``version``: of the
    operators that the file asks for; ``bodies``: of If and Loop, by the attribute's name; ``last_reads``: what no node
    behind it reads."""

    op: str
    name: str
    number: int
    line: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[str, Body] = field(default_factory=dict)
    last_reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """Nodes in their order, and the names of what goes in and comes out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A step with the values that it reads: what a row is given. ``stored`` gives the tensor of a name; ``enter`` runs
    a body on values, and knows all that stands outside of it."""

    step: Step
    values: tuple[Value | None, ...]
    stored: Callable[[str], Tensor]
    enter: Callable[[Body, list[Value]], list[Value]]

    @property
    def version(self) -> int:
        return self.step.version

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.step.attributes.get(name, default)

    def has(self, place: int) -> bool:
        """Whether there is an input at ``place``; those left out at the end or by an empty name are none."""
        return place < len(self.values) and self.values[place] is not None

    def wants(self, place: int) -> bool:
        """Whether something reads the output at ``place``."""
        return place < len(self.step.outputs) and bool(self.step.outputs[place])

    def tensor(self, place: int) -> Tensor:
        """The input at ``place`` as a tensor."""
        value = self.values[place]
        if isinstance(value, Known):
            return self.stored(value.name) if value.name else value.tensor()
        if not isinstance(value, Tensor):
            raise self.refusal("reads a sequence where PyTorch has a tensor")
        return value

    def optional(self, place: int) -> Tensor | None:
        return self.tensor(place) if self.has(place) else None

    def tensors(self) -> list[Tensor]:
        """All inputs."""
        return [self.tensor(place) for place in range(len(self.values)) if self.has(place)]

    def operand(self, place: int) -> Any:
        """The input at ``place``; one number alone as a number, so that the graph has it as such."""
        value = self.values[place]
        if isinstance(value, Known) and value.array.size == 1 and value.array.ndim <= 1:
            return value.array.reshape(-1).tolist()[0]
        return self.tensor(place)

    def array(self, place: int, what: str) -> np.ndarray:
        """Numbers of the input at ``place``, which say ``what`` and so must be known ahead."""
        value = self.values[place]
        if not isinstance(value, Known):
            raise self.refusal(f"takes {what} from values that are only known when the model runs")
        return value.array

    def numbers(self, place: int, what: str) -> list[Any]:
        return list(self.array(place, what).reshape(-1).tolist())

    def given(self, name: str, place: int, default: Any = None) -> Any:
        """Numbers that are an attribute in older operator sets and an input in newer ones."""
        if name in self.step.attributes:
            return self.step.attributes[name]
        return self.numbers(place, name) if self.has(place) else default

    def refusal(self, why: str) -> Unreadable:
        """That this node cannot be read, as an error to raise."""
        return Unreadable(f"{self.step.op} at node '{self.step.name}' {why}: it cannot be read.")


Result = Value | tuple[Value | None, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """``run`` gives the outputs of a call, on tensors; ``symbolic``: the same on known numbers, of which some are sizes
    of free axes (None: they become tensors)."""

    run: Callable[[Call], Result]
    symbolic: Callable[[Call], Known] | None = None


def dims_of(x: Tensor, axes: Any) -> list[int]:
    """Axes counted from the front."""
    return [int(axis) % max(x.dim(), 1) for axis in axes]


DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,  # float16: files are computed in float32
    11: torch.float64,
    16: torch.float32,  # bfloat16
}
"""By the numbers that ONNX has for them."""
