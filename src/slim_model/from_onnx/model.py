"""The nodes of an ONNX file as a module: its forward runs the row of each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import traceback as trace_notes
from torch.utils._python_dispatch import _disable_current_modes

from slim_model.errors import InputError, first_line
from slim_model.from_onnx.kept import keep
from slim_model.from_onnx.known import Known, all_known, known_tensor
from slim_model.from_onnx.row import Body, Call, Row, Step, Unreadable, Value
from slim_model.from_onnx.table import ROWS

Dim = int | str
"""A size, or the name of one that is left open ("" where it has none)."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One input of a file; ``dtype`` is that of its values here, ``half`` whether the file has them as float16."""

    name: str
    dims: tuple[Dim, ...] | None
    dtype: torch.dtype
    half: bool = False


@dataclass(frozen=True, slots=True)
class OriginalFile:
    """The bytes that were read; ``beside``: arrays of its initialisers that lie in other files; ``half``: whether it
    computes in float16."""

    content: bytes
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)
    half: bool = False

    def __deepcopy__(self, memo: Any) -> OriginalFile:
        return self


class OnnxModel(nn.Module):
    """Computes what ``file`` does; returns a dict of its outputs by name. Initialisers are parameters and buffers."""

    def __init__(
        self,
        signatures: tuple[Signature, ...],
        body: Body,
        stored: Mapping[str, Known],
        trained: frozenset[str],
        file: OriginalFile,
        title: str,
    ) -> None:
        super().__init__()
        self.signatures, self.body, self.file, self.title = signatures, body, file, title
        self.stored = dict(stored)
        for known in stored.values():
            _store(self, known.name, known.real(), known.name in trained)

    @property
    def input_names(self) -> tuple[str, ...]:
        """As the file has them, in any letters."""
        return tuple(signature.name for signature in self.signatures)

    @property
    def has_fixed_batch(self) -> bool:
        """Whether the file takes one size of axis 0 only, as its first input says."""
        dims = self.signatures[0].dims if self.signatures else None
        return bool(dims) and isinstance(dims[0], int)  # type: ignore[index]

    def forward(self, *given: Any) -> dict[str, Tensor]:
        run = _Run(self.title, dict(itertools.chain(
            self.named_parameters(remove_duplicate=False), self.named_buffers(remove_duplicate=False)
        )))  # fmt: skip
        values: dict[str, Any] = dict(self.stored)
        for signature, value in zip(self.signatures, given, strict=True):
            values[signature.name] = value if isinstance(value, Tensor) else _constant(signature, value)
        run.steps(self.body, values)
        return {name: run.tensor(values[name]) for name in self.body.outputs}


def _constant(signature: Signature, value: Any) -> Known:
    """An input that the user gave as a number."""
    shape = [1] * len(signature.dims or ())
    return Known(np.full(shape, value, dtype=str(signature.dtype).removeprefix("torch.")), signature.dtype)


def _store(root: nn.Module, name: str, tensor: Tensor, is_parameter: bool) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if is_parameter:
        root.register_parameter(leaf, nn.Parameter(tensor))
    else:
        root.register_buffer(leaf, tensor)


class _Run:
    """One run of the nodes over ``tensors``, the stored ones by name."""

    def __init__(self, title: str, tensors: dict[str, Tensor]) -> None:
        self.title, self.tensors = title, tensors

    def tensor(self, value: Any) -> Tensor:
        if isinstance(value, Known):
            return self.tensors[value.name] if value.name else value.tensor()
        if not isinstance(value, Tensor):
            raise InputError("returns a sequence, which no small model can. Let it return tensors.")
        return value

    def steps(self, body: Body, values: dict[str, Any]) -> None:
        """Adds to ``values`` what the nodes of ``body`` give, and takes from it what is read no more."""
        for step in body.steps:
            with trace_notes.preserve_node_meta():
                trace_notes.current_meta["stack_trace"] = f'File "{self.title}", line {step.number}, in {step.name}\n' \
                                                          f"    {step.line}"  # fmt: skip
                results = self._outputs(step, values)
            for name, value in zip(step.outputs, results, strict=False):
                values[name] = value
            for name in step.last_reads:
                values.pop(name, None)

    def _outputs(self, step: Step, values: dict[str, Any]) -> tuple[Any, ...]:
        def enter(body: Body, given: list[Value]) -> list[Value]:
            inner = {**values, **dict(zip(body.inputs, given, strict=False))}
            self.steps(body, inner)
            return [inner[name] for name in body.outputs]

        read = tuple(values[name] if name else None for name in step.inputs)
        call = Call(step, read, self.tensors.__getitem__, enter)
        try:
            result = self._run(call)
        except InputError:
            raise
        except Exception as error:  # of PyTorch, on sizes or types
            raise RuntimeError(
                f"{first_line(error)} (at {self.title}:{step.number} in {step.name}: {step.line})"
            ) from error
        return result if isinstance(result, tuple) else (result,)

    def _run(self, call: Call) -> Any:
        row = ROWS.get(call.step.op)
        if call.step.op in ("If", "Loop", "Constant") or not call.values or not all_known(call.values):
            return _read_or_kept(row, call)
        given = [value for value in call.values if isinstance(value, Known)]
        if any(value.is_symbolic for value in given):
            return _read_or_kept(row, call) if row is None or row.symbolic is None else row.symbolic(call)
        # What is known ahead is computed here and now, by the same row, on tensors that no tracer sees.
        with _disable_current_modes(), torch.no_grad():
            real = {value.name: value.real() for value in given if value.name}
            result = _read_or_kept(row, Call(call.step, call.values, real.__getitem__, call.enter))
            return tuple(map(_known, result)) if isinstance(result, tuple) else _known(result)


def _read_or_kept(row: Row | None, call: Call) -> Any:
    """By its row; what that cannot read is one operator of its own."""
    if row is None:
        return keep(call, call.refusal("is an operator that slim-model does not know"))
    try:
        return row.run(call)
    except Unreadable as why:
        return keep(call, why)


def _known(result: Any) -> Any:
    return known_tensor(result) if isinstance(result, Tensor) else result
