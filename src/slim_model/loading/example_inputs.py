"""Example inputs: as the user typed them, or guessed from the model's first layer and tried."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slim_model.calling.arguments import Arguments
from slim_model.calling.outputs import flatten_outputs, output_tensors
from slim_model.errors import InputError
from slim_model.graph.other_inputs.looked_up import Span, looked_up
from slim_model.graph.other_inputs.other_values import other_values
from slim_model.loading.input_spec import Shape, TensorSpec, describe_error, spec_of
from slim_model.loading.value_sizes import asks_too_much

#: Tried in this order. 224 is what most image models are trained on; the small ones tell fixed sizes apart.
_SIDES = (224, 32, 64, 28, 96, 128, 48, 112, 160, 192, 240, 256, 299, 320, 384)
_LENGTHS = (16, 32, 64, 128, 256, 512, 8, 10, 20, 50, 100, 200, 1000, 1024)
_CHEAP = 128  # once a size works, larger ones than this are not tried
_SEQUENTIAL = ("MultiheadAttention", "LSTM", "GRU", "RNN")
_KINDS = ("Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding", "EmbeddingBag", *_SEQUENTIAL)
_EXAMPLE = "Give each input its shape, such as --input 1x3x224x224 or --input 1x16:int64."


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Shapes without the batch that suit one layer, most likely first."""

    layer: Any
    shapes: tuple[Shape, ...]
    dtype: torch.dtype
    interchangeable: bool = True  # if several give outputs of the same shape, the first will do


@dataclass(frozen=True, slots=True)
class _Trial:
    """A shape without the batch that the model accepts, and the shapes of its outputs without the batch."""

    shape: Shape
    outputs: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class _Unfit:
    """``why`` the model does not accept a shape; ``too_much``: nor any that is larger."""

    why: str
    too_much: bool = False


def make_inputs(
    model: nn.Module, specs: Iterable[TensorSpec], seed: int, *, call: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, ...]:
    """A tensor for each of ``specs``, of its values. Without any random: normal; numbers that the tables have in which
    it is looked up; bytes; or a mask, as of a batch of texts that end at different places.

    ``call(*tensors)`` calls the model on such tensors, where they are not simply its positional arguments.
    """
    generator = torch.Generator().manual_seed(seed)
    specs = list(specs)
    spans = _spans(model, specs, call or model)
    return tuple(
        _filled(spec) if spec.values else _random(spec, span, generator)
        for spec, span in zip(specs, spans, strict=True)
    )


def _spans(model: nn.Module, specs: list[TensorSpec], call: Callable[..., Any]) -> list[Span | None]:
    """What whole numbers may be, as a run on zeros shows, or on ones; where neither shows it, what every embedding
    has."""
    whole = [not s.dtype.is_floating_point and s.dtype is not torch.bool and not s.values for s in specs]
    if not any(whole):
        return [None] * len(specs)
    for value in (0, 1):
        found = looked_up(call, [_filled(s) if s.values else torch.full(s.shape, value, dtype=s.dtype) for s in specs])
        if any(found):
            return found
    layers: list[Any] = [module for module in model.modules() if _kind(module).startswith("Embedding")]
    rows = min((int(layer.num_embeddings) for layer in layers), default=0)
    return [Span(0, rows - 1) if rows and here else None for here in whole]


def guess_inputs(model: nn.Module, seed: int = 0, *, sides: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
    """One example input, with a batch of 1, of the only size or the usual size that ``model`` takes.

    Sizes that suit the first layer are tried with a batch of 2. Where just one works it is right. Where
    several work and give outputs of the same shape (pooling makes them equal), 224 is taken for an image
    model that shrinks the image 16 times or more, else 32 (28 with one channel). Where the size of the output
    depends on that of the input only the user knows it: an InputError says what was tried and what to type.
    ``sides``: of pictures, those that the file says it was trained on.
    """
    tried: list[str] = []
    failure = ""
    for candidate in _candidates(model, sides):
        trials: list[_Trial] = []
        too_much: float = math.inf
        for shape in candidate.shapes:
            if len(trials) == 2 or (trials and candidate.interchangeable and shape[-1] > _CHEAP):
                continue
            if math.prod(shape) >= too_much:
                continue
            tried.append(spec_of((1, *shape), candidate.dtype))
            outcome = _try(model, shape, candidate.dtype, seed)
            if isinstance(outcome, _Trial):
                trials.append(outcome)
                continue
            # the first try is the likeliest, and what it failed of the most telling
            failure = failure or f"{tried[-1]} failed with {outcome.why}"
            too_much = math.prod(shape) if outcome.too_much else too_much
        if trials:
            shape = _choose(model, candidate, trials, seed)
            return make_inputs(model, [TensorSpec((1, *shape), candidate.dtype)], seed)
    listed = f" (tried {', '.join(tried[:6])}{', ...' if len(tried) > 6 else ''})" if tried else ""
    failure = failure or "it has no layer that tells"
    raise InputError(f"cannot tell the shape of the model's input{listed}: {failure}. {_EXAMPLE}")


def run_once(model: nn.Module, arguments: Arguments) -> list[torch.Tensor]:
    """The tensors that ``model`` returns for ``arguments``; an InputError says why there are none, or what it returns
    that is none."""
    inputs = arguments.tensors
    shapes = ", ".join(spec_of(x.shape, x.dtype) for x in inputs)
    try:
        with torch.no_grad():
            outputs = output_tensors(arguments.call(model))
    except InputError:
        raise
    except Exception as error:  # whatever the user's model raises
        hint = (
            " The model looks up whole numbers, so :int64 may be what is missing."
            if _wants_integers(model, inputs)
            else ""
        )
        raise InputError(
            f"the model cannot run on inputs of shape {shapes}: {describe_error(error)}. "
            f"If the shape is wrong: {_EXAMPLE}{hint}"
        ) from error
    if not any(tensor.is_floating_point() for tensor in outputs):
        raise InputError(
            f"the model returns no floating point tensor for inputs of shape {shapes}: there is nothing to "
            "compare the small model by; make forward return its tensors"
        )
    return outputs


def _filled(spec: TensorSpec) -> torch.Tensor:
    if len(spec.values) == 1:
        return torch.full(spec.shape, spec.values[0], dtype=spec.dtype)
    return torch.tensor(spec.values, dtype=spec.dtype).reshape(spec.shape)


def _random(spec: TensorSpec, span: Span | None, generator: torch.Generator) -> torch.Tensor:
    shape, dtype = spec.shape, spec.dtype
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if span is None and dtype is not torch.uint8:
        return other_values(torch.ones(shape, dtype=dtype), shape, None, generator)
    least, most = span or Span(0, 255)
    return torch.randint(least, min(most, torch.iinfo(dtype).max) + 1, shape, generator=generator).to(dtype)


def _kind(module: nn.Module) -> str:
    """The layer class of torch that ``module`` is or derives from; a scripted module remembers its name."""
    names = [getattr(module, "original_name", ""), *(cls.__name__ for cls in type(module).__mro__)]
    return next((name for name in names if name in _KINDS), "")


def _wants_integers(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bool:
    looks_up = any(_kind(module).startswith("Embedding") for module in model.modules())
    return looks_up and all(x.is_floating_point() for x in inputs)


def _candidates(model: nn.Module, sides: tuple[int, ...]) -> Iterator[_Candidate]:
    """What suits the first layer of each known kind, in the model's order; of pictures first those of ``sides``."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    sequential = any(_kind(module) in _SEQUENTIAL for module in model.modules())
    seen: set[str] = set()
    for module in model.modules():
        kind = _kind(module)
        if kind in seen:
            continue
        seen.add(kind)
        if kind == "Linear":
            features = int(module.in_features)  # type: ignore[arg-type]
            flat = _Candidate(module, _flat_shapes(features), dtype, interchangeable=False)
            sequence = _Candidate(module, ((16, features), (32, features)), dtype)
            yield from (sequence, flat) if sequential else (flat, sequence)
        elif shapes := _shapes(model, module, kind):
            if kind == "Conv2d" and sides:
                yield _Candidate(module, tuple((shapes[0][0], side, side) for side in sides), dtype)
            yield _Candidate(module, shapes, torch.int64 if kind.startswith("Embedding") else dtype)


def _shapes(model: nn.Module, layer: Any, kind: str) -> tuple[Shape, ...]:
    if kind == "Conv2d":
        return tuple((layer.in_channels, side, side) for side in dict.fromkeys((*_hints(model), *_SIDES)))
    if kind == "Conv1d":
        return tuple((layer.in_channels, length) for length in _LENGTHS)
    if kind == "Conv3d":
        volumes = ((16, 112), (16, 32), (32, 32), (64, 64), (8, 224))
        return tuple((layer.in_channels, depth, side, side) for depth, side in volumes)
    if kind in ("LSTM", "GRU", "RNN"):
        return tuple((length, layer.input_size) for length in _LENGTHS)
    if kind in ("Embedding", "EmbeddingBag"):
        return tuple((length,) for length in _LENGTHS)
    return ()


def _flat_shapes(in_features: int) -> tuple[Shape, ...]:
    """``in_features`` numbers, flat or as an image that the model may flatten, or cut into patches."""
    shapes: list[Shape] = [(in_features,)]
    for channels in (1, 3):
        side = math.isqrt(in_features // channels)
        if side > 1 and channels * side * side == in_features:
            shapes += [(channels, side, side), (channels, 2 * side, 2 * side)]
    return tuple(shapes)


def _hints(model: nn.Module) -> list[int]:
    """Image sides that the model itself mentions."""
    sides: list[int] = []
    for config in (getattr(model, "pretrained_cfg", None), getattr(model, "default_cfg", None)):
        if isinstance(config, dict) and isinstance(size := config.get("input_size"), list | tuple):
            sides += [int(size[-1])]
    for module in model.modules():
        for name in ("image_size", "img_size"):
            size = getattr(module, name, None)
            size = size[-1] if isinstance(size, list | tuple) and size else size
            sides += [size] if isinstance(size, int) else []
    return list(dict.fromkeys(sides))


def _try(model: nn.Module, shape: Shape, dtype: torch.dtype, seed: int) -> _Trial | _Unfit:
    """What a batch of two of ``shape`` gives, or why it gives nothing."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors, form = flatten_outputs(model(*make_inputs(model, [TensorSpec((2, *shape), dtype)], seed)))
    except InputError:  # of what it returns, whatever the shape
        raise
    except Exception as error:  # the model's way of saying that the shape is wrong
        return _Unfit(describe_error(error), asks_too_much(error))
    outputs = [x for x, name in zip(tensors, form.names, strict=True) if name not in form.numbers]
    if not outputs or any(tensor.ndim == 0 or tensor.shape[0] != 2 for tensor in outputs):
        return _Unfit(f"outputs of shape {[tuple(t.shape) for t in outputs]} for a batch of 2")
    return _Trial(shape, tuple(tuple(tensor.shape[1:]) for tensor in outputs))


def _choose(model: nn.Module, candidate: _Candidate, trials: list[_Trial], seed: int) -> Shape:
    first = trials[0]
    if len(trials) == 1:
        return first.shape
    if not candidate.interchangeable or first.outputs != trials[1].outputs:
        works = [spec_of((1, *trial.shape), candidate.dtype) for trial in trials]
        outputs = [", ".join(spec_of((1, *shape), torch.float32) for shape in trial.outputs) for trial in trials]
        raise InputError(
            f"cannot tell the shape of the model's input: {works[0]} works and gives {outputs[0]}, "
            f"{works[1]} works and gives {outputs[1]}. Say which it is, such as --input {works[0]}"
        )
    if first.shape[1:] == (224, 224) and not _hints(model) and _shrinks_little(model, candidate, seed):
        side = 28 if first.shape[0] == 1 else 32
        return (first.shape[0], side, side)
    return first.shape


def _shrinks_little(model: nn.Module, candidate: _Candidate, seed: int) -> bool:
    """True for a model made for small images: the first convolution keeps the size, and all together shrink
    it 8 times or less. CIFAR ResNet-20: 224 to 56. Resnet50 strides at once; vgg16 shrinks 224 to 14."""
    if any(step != 1 for step in candidate.layer.stride):
        return False
    sides: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _args, output: sides.append(int(output.shape[-1])))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        _try(model, (candidate.layer.in_channels, 224, 224), candidate.dtype, seed)
    finally:
        for hook in hooks:
            hook.remove()
    # a side of 1 is a convolution of the pooled features, as in squeeze-and-excitation
    return bool(sides) and min((side for side in sides if side > 1), default=1) >= 28
