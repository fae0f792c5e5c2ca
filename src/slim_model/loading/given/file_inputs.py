"""Inputs of an ONNX file, which says itself what it takes: what is typed is held to that, what is not comes from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from slim_model.calling.arguments import Arguments
from slim_model.errors import InputError
from slim_model.from_onnx.model import OnnxModel, Signature
from slim_model.loading.example_inputs import make_inputs, run_once
from slim_model.loading.input_spec import ConstantSpec, InputSpec, Shape, TensorSpec, spec_of

_SIDES = (224, 320, 64, 640, 48, 32, 128, 256, 512)
_LENGTHS = (16, 128, 64, 32, 100, 256, 512, 1000)
"""Tried in this order for sizes that the file leaves open: of pictures, and of anything else."""


def file_arguments(model: OnnxModel, specs: Sequence[InputSpec], seed: int) -> Arguments:
    """What ``model`` is called with: as ``specs`` say, by name, else by place; what they do not say as the file does.
    Sizes that neither says are tried, one for all. Raises InputError."""
    given = _by_name(model, specs)
    tried = ""
    for size in _sizes(model, given):
        wanted = [given.get(s.name) or TensorSpec(_shape(s, size), s.dtype) for s in model.signatures]
        arguments = _filled(model, wanted, seed)
        if size == 0:
            return arguments
        try:
            run_once(model, arguments)
        except InputError as error:
            tried = tried or str(error)
        else:
            return arguments
    open_inputs = [s for s in model.signatures if s.name not in given and _is_open(s)]
    said = ", ".join(f"'{s.name}' is {described(s)}" for s in open_inputs)
    one = f"--input {open_inputs[0].name}=1x3x224x224"
    raise InputError(f"leaves sizes of its inputs open: {said}. Give each, such as {one}. {tried}")


def is_said(model: OnnxModel) -> bool:
    """Whether the file says all sizes but the batch."""
    return not any(map(_is_open, model.signatures))


def described(signature: Signature) -> str:
    """``batch x 3 x ? x ?:float32``."""
    if signature.dims is None:
        return "of any shape"
    shape = " x ".join(str(d) or "?" for d in signature.dims) or "a single number"
    return f"{shape}:{str(signature.dtype).removeprefix('torch.')}"


def _by_name(model: OnnxModel, specs: Sequence[InputSpec]) -> dict[str, TensorSpec | ConstantSpec]:
    signatures = {s.name: s for s in model.signatures}
    listed = ", ".join(signatures)
    named = {spec.name: spec.given for spec in specs if spec.name}
    if unknown := [name for name in named if name not in signatures]:
        raise InputError(f"--input {unknown[0]}=...: its inputs are called {listed}.")
    by_place = [spec.given for spec in specs if not spec.name]
    rest = [name for name in signatures if name not in named]
    if len(by_place) > len(rest):
        raise InputError(f"--input is given {len(specs)} times; the file has {len(signatures)} inputs: {listed}.")
    named |= dict(zip(rest, by_place, strict=False))
    return {name: _checked(signatures[name], one) for name, one in named.items()}


def _checked(signature: Signature, given: TensorSpec | ConstantSpec) -> TensorSpec | ConstantSpec:
    if isinstance(given, ConstantSpec):
        if not isinstance(given.value, int | float):
            raise InputError(f"--input {signature.name}={given.value}: the file takes {described(signature)} there.")
        return given
    dims = signature.dims
    fits = dims is None or (
        len(dims) == len(given.shape)
        and all(not isinstance(d, int) or d == n for d, n in zip(dims, given.shape, strict=True))
    )
    if not fits:
        typed = spec_of(given.shape, signature.dtype, signature.name)
        raise InputError(f"--input {typed}: input '{signature.name}' of the file is {described(signature)}.")
    return TensorSpec(given.shape, signature.dtype, given.values)  # the file knows the type of its values


def _sizes(model: OnnxModel, given: dict[str, Any]) -> Iterator[int]:
    """What to try for open sizes; 0 where there are none."""
    left = [s for s in model.signatures if s.name not in given]
    if any(s.dims is None for s in left):
        return
    if not any(map(_is_open, left)):
        yield 0
        return
    yield from _SIDES if any(len(s.dims or ()) > 3 for s in left) else _LENGTHS


def _is_open(signature: Signature) -> bool:
    return signature.dims is None or any(not isinstance(d, int) for d in signature.dims[1:])


def _shape(signature: Signature, size: int) -> Shape:
    """The batch is one, any other size that is open ``size``."""
    return tuple(
        max(d, 1) if isinstance(d, int) else 1 if axis == 0 else size for axis, d in enumerate(signature.dims or ())
    )


def _filled(model: OnnxModel, wanted: Sequence[TensorSpec | ConstantSpec], seed: int) -> Arguments:
    def placed(*tensors: torch.Tensor) -> Arguments:
        left = iter(tensors)
        return Arguments(tuple(next(left) if isinstance(w, TensorSpec) else w.value for w in wanted))

    specs = [w for w in wanted if isinstance(w, TensorSpec)]
    return placed(*make_inputs(model, specs, seed, call=lambda *tensors: placed(*tensors).call(model)))
