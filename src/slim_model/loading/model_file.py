"""A file to be timed -> what a runtime takes, and inputs made from the file's own signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor

from slim_model.calling.flat_module import flat_module
from slim_model.errors import InputError
from slim_model.from_onnx.read import parse
from slim_model.loading.file_bytes import read_file
from slim_model.loading.given.example_file import example_tensors, read_example
from slim_model.loading.input_spec import DTYPES, TensorSpec, parse_input, spec_of
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions

Dim = int | str
"""A size, or the name of one that is left open ("" where it has none)."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One input of a file."""

    name: str
    dims: tuple[Dim, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Artifact:
    """``runnable`` is what rows of RUNTIMES with ``artifact == kind`` take; ``dtype`` that of most stored weights;
    ``held``: values of all inputs from the user's example, where one was given for an ONNX file."""

    path: Path
    kind: Literal["onnx", "module"]
    runnable: Any
    inputs: tuple[Signature, ...]
    dtype: str
    sha256: str
    loading: SourceOptions
    held: tuple[Tensor, ...] = ()

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size the file takes, or None where it takes any."""
        first = self.inputs[0].dims[:1] if self.inputs else ()
        return first[0] if first and isinstance(first[0], int) else None

    def shapes(self, batch: int) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Shape and dtype of each input; an InputError names a size that only the user knows."""
        if self.fixed_batch not in (None, batch):
            raise InputError(f"{self.path}: its batch size is fixed at {self.fixed_batch}. Leave --batch out.")
        return tuple((self._shape(i, batch, spec.shape if spec else None), i.dtype) for i, spec in self._given())

    def example(self, batch: int, seed: int = 0) -> list[Tensor]:
        """The user's own, as many of them as ``batch``, the first again where they are fewer; else random inputs:
        normal, or 0 and 1 for whole numbers, which any table of words or mask takes."""
        if self.held:
            sizes = self.shapes(batch)
            return [_rows(x, shape).to(dtype) for x, (shape, dtype) in zip(self.held, sizes, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            torch.randn(shape, generator=generator).to(dtype)
            if dtype.is_floating_point
            else torch.randint(0, 2, shape, generator=generator).to(dtype)
            for shape, dtype in self.shapes(batch)
        ]
        given = [spec.values if spec else () for _, spec in self._given()]
        return [
            torch.full_like(x, v[0]) if v and len(v) == 1 else torch.tensor(v).reshape(x.shape).to(x) if v else x
            for x, v in zip(drawn, given, strict=True)
        ]

    def _given(self) -> list[tuple[Signature, TensorSpec | None]]:
        """Each input with what was typed for it: by name, else by place."""
        if self.held:
            pairs = zip(self.inputs, self.held, strict=True)
            return [(i, TensorSpec(tuple(x.shape), x.dtype)) for i, x in pairs]
        specs = [parse_input(text) for text in self.loading.inputs]
        tensors = [(spec.name, spec.given) for spec in specs if isinstance(spec.given, TensorSpec)]
        if tensors and len(tensors) != len(self.inputs):
            raise InputError(
                f"{self.path}: --input is given {len(tensors)} times; the file has {len(self.inputs)} inputs."
            )
        by_name = {name: given for name, given in tensors if name}
        if unknown := by_name.keys() - {i.name for i in self.inputs}:
            listed = ", ".join(i.name for i in self.inputs)
            raise InputError(f"{self.path}: --input {min(unknown)}=...: its inputs are called {listed}.")
        by_place = iter([given for name, given in tensors if not name])
        return [(i, by_name.get(i.name) or next(by_place, None)) for i in self.inputs]

    def _shape(self, signature: Signature, batch: int, typed: tuple[int, ...] | None) -> tuple[int, ...]:
        dims = " x ".join(str(d) or "?" for d in signature.dims)
        where = f"{self.path}: input '{signature.name}' is {dims or 'a single number'}"
        if typed is not None and len(typed) != len(signature.dims):
            raise InputError(f"{where}, so --input {'x'.join(map(str, typed))} does not fit it.")
        symbol = self.inputs[0].dims[0] if self.inputs[0].dims else ""
        sizes = []
        for axis, dim in enumerate(signature.dims):
            if isinstance(dim, int) and typed is not None and typed[axis] != dim and axis > 0:
                raise InputError(f"{where}, so --input {'x'.join(map(str, typed))} does not fit it.")
            if isinstance(dim, int):
                sizes.append(dim)
            elif axis == 0 or (dim and dim == symbol):
                sizes.append(batch)
            elif typed is None:
                raise InputError(f"{where}: the size of axis {axis} is open. Give --input with all sizes, once per "
                                 "input, such as --input 1x3x224x224 or --input 1x16:int64.")  # fmt: skip
            else:
                sizes.append(typed[axis])
        return tuple(sizes)


def open_artifact(path: Path, loading: SourceOptions) -> Artifact:
    """Open a file: an ONNX model by its ending, else whatever ``load`` reads, as safely."""
    if path.suffix != ".onnx":
        return _module(path, loading)
    try:
        file = read_file(path, limited=False)
        model = parse(file.content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    inputs, held = _signature(path, model.graph), tuple[Tensor, ...]()
    if not inputs:
        raise InputError(f"{path}: the model has no inputs, so there is nothing to time.")
    if loading.example is not None:
        held = tuple(example_tensors([i.name for i in inputs], read_example(loading.example)))
    return Artifact(path, "onnx", path, inputs, _most(_stored(model.graph)), file.sha256, loading, held)


def _rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows of ``x``, from the first on and again, as many as ``shape`` has."""
    if tuple(x.shape) == shape:
        return x
    if tuple(x.shape[1:]) != shape[1:]:
        raise InputError(f"--example has {list(x.shape)} where the file takes {list(shape)}.")
    return x[torch.arange(shape[0]) % len(x)]


def _signature(path: Path, graph: Any) -> tuple[Signature, ...]:
    stored = {tensor.name for tensor in graph.initializer}
    signatures = []
    for value in graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        dtype = DTYPES.get({"float": "float32", "double": "float64"}.get(name, name))
        if dtype in (None, torch.bfloat16):
            raise InputError(f"{path}: input '{value.name}' is of type {name}, which cannot be made here.")
        # Some write an open size as -1 or 0.
        dims = tuple(d.dim_value if d.dim_value > 0 else d.dim_param for d in kind.shape.dim)
        signatures.append(Signature(value.name, dims, dtype))
    return tuple(signatures)


def _stored(graph: Any) -> list[tuple[str, int]]:
    names = onnx.TensorProto.DataType.Name
    return [(names(t.data_type).lower(), max(1, int(torch.Size(t.dims).numel()))) for t in graph.initializer]


def _most(weights: Sequence[tuple[str, int]]) -> str:
    """The type most weights are stored in: ``[("float", 9), ("int64", 2)] -> "float32"``."""
    counts: dict[str, int] = {}
    for name, count in weights:
        counts[name] = counts.get(name, 0) + count
    most = max(counts, key=lambda name: counts[name], default="float32")
    return {"float": "float32", "double": "float64"}.get(most, most)


def _module(path: Path, loading: SourceOptions) -> Artifact:
    subject = load(path, loading)
    batch_is_free = subject.program is None or _free_batch(subject.program)
    inputs = tuple(
        Signature(name, (("batch" if batch_is_free else x.shape[0]), *x.shape[1:]) if x.dim() else (), x.dtype)
        for name, x in zip(subject.arguments.names(subject.model), subject.inputs, strict=True)
    )
    module = flat_module(subject.model, subject.arguments)
    weights = [(str(p.dtype).removeprefix("torch."), p.numel()) for p in subject.model.parameters()]
    return Artifact(path, "module", module, inputs, _most(weights), subject.sha256, loading)


def _free_batch(program: Any) -> bool:
    users = set(program.graph_signature.user_inputs)
    shapes = [n.meta["val"].shape for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    return any(len(shape) and not isinstance(shape[0], int) for shape in shapes)


def spec_of_input(shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[str]:
    """As typed after ``--input``."""
    return [spec_of(shape, dtype) for shape, dtype in shapes]
