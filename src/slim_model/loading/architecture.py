"""Build the model that ``--arch`` names and load a state dict into it."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from slim_model.errors import InputError
from slim_model.loading.input_spec import describe_error
from slim_model.loading.libraries.table import library_named, library_that_wrote, version_that_wrote
from slim_model.loading.rehearse import rehearse
from slim_model.loading.user_code import import_file, make_importable
from slim_model.loading.weights.checkpoint import Checkpoint
from slim_model.loading.weights.choose import ChosenWeights, choose_weights

_EXAMPLES = (
    "Write torchvision:resnet50, timm:NAME, path/file.py:callable or package.module:callable, "
    "with arguments as in torchvision:resnet18(num_classes=10)"
)
_SHOWN = 4  # names in a message
_LETTERS = 40  # of an argument in a note
_NOT_STRICT = " If these names do not matter, --no-strict goes on: what the file lacks then stays untrained."


@dataclass(frozen=True, slots=True)
class _Arch:
    text: str  # as typed
    place: str  # "torchvision", "timm", a file, or a package.module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def build(
    arch: str, saved: Checkpoint, *, prefix: str | None = None, strict: bool = True, trusted: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model that ``arch`` names, with the weights in ``saved`` that fit it, and notes of what was assumed.

    What training puts in front of names is taken off, or ``prefix`` alone. Names and shapes must all agree; without
    ``strict`` only shapes. The number of classes is taken from the weights where the builder accepts ``num_classes``
    and the user gave none; others where the library that wrote the file kept them there.
    """
    spec = _parse(arch)
    builder = _find(spec)
    told, said = _told(spec, builder, saved.beside)
    if told and not trusted:  # the file says how large the model is
        size = max((sum(x.nbytes for x in weights.tensors.values()) for weights in saved.weights), default=0)
        rehearse(lambda: bool(_call(spec, builder, told | spec.kwargs)), file_bytes=size)
    implied = told | _implied(spec, builder, {name for weights in saved.weights for name in weights.tensors})
    model = _call(spec, builder, implied | spec.kwargs)
    choice = choose_weights(saved, _shapes(model), prefix)
    classes = _classes(model, choice.fitted.tensors)
    if classes and "num_classes" not in spec.kwargs and not spec.args and _accepts(builder, "num_classes"):
        model = _call(spec, builder, implied | spec.kwargs | {"num_classes": classes})
        choice = choose_weights(saved, _shapes(model), prefix)
    choice.check_clear()
    return model, (*said, *choice.notes(), *_load(arch, model, choice, saved, strict))


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def _parse(arch: str) -> _Arch:
    match = re.fullmatch(r"(?P<place>.+?):(?P<name>[A-Za-z_][\w.\-]*)(?P<call>\(.*\))?", arch.strip())
    if not match:
        raise InputError(f"--arch {arch!r} names no model. {_EXAMPLES}.")
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if match["call"]:
        try:
            call = ast.parse(f"f{match['call']}", mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                raise ValueError("it is not one call")
            args = tuple(ast.literal_eval(value) for value in call.args)
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (SyntaxError, ValueError) as error:
            raise InputError(
                f"--arch {arch!r}: arguments must be plain values, such as (num_classes=10): {error}."
            ) from error
    return _Arch(arch, match["place"], match["name"], args, kwargs)


def _find(spec: _Arch) -> Any:
    """The callable, or the module itself where the name is one."""
    library = library_named(spec.place)
    if library is not None and library.builder is not None:
        try:
            return library.builder(spec.name)
        except InputError as error:
            raise InputError(f"--arch {spec.text!r}: {error}") from error
    if spec.place.endswith(".py"):
        place: ModuleType = import_file(Path(spec.place))
    else:
        make_importable(Path())
        try:
            place = importlib.import_module(spec.place)
        except Exception as error:  # whatever the user's package raises
            raise InputError(
                f"--arch {spec.text!r}: importing {spec.place} failed with {describe_error(error)}. {_EXAMPLES}."
            ) from error
    attribute = place
    for part in spec.name.split("."):
        if not hasattr(attribute, part):
            near = difflib.get_close_matches(part, [name for name in vars(place) if not name.startswith("_")])
            also = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"--arch {spec.text!r}: {spec.place} has no {spec.name!r}.{also}")
        attribute = getattr(attribute, part)
    return attribute


def _accepts(builder: Any, argument: str) -> bool:
    if not callable(builder) or isinstance(builder, nn.Module):
        return False
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return False
    # torchvision's builders hand their **kwargs to the model class
    passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return argument in parameters or (passed_on and _of_torchvision(builder))


def _implied(spec: _Arch, builder: Any, state: Collection[str]) -> dict[str, Any]:
    """Arguments that follow from loading a state dict."""
    package = "torchvision" if _of_torchvision(builder) else spec.place  # also as a package.module:callable
    library = library_named(package)
    return library.implied(builder, state) if library is not None and library.implied is not None else {}


def _told(spec: _Arch, builder: Any, beside: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Arguments that the library which wrote the file keeps beside the weights, and what is said of it. Not for the
    names of a library's own models, which are called otherwise, nor where the user gave arguments by their place."""
    library = library_that_wrote(beside)
    if library is None:
        return {}, ()
    wrote = f"{version_that_wrote(beside)} wrote the file"
    own = library_named(spec.place) is not None or spec.args or not callable(builder) or isinstance(builder, nn.Module)
    told = {} if own or library.arguments is None else library.arguments(builder, beside)
    taken = ", ".join(f"{name}={_short(value)}" for name, value in told.items() if name not in spec.kwargs)
    return told, (f"{wrote}; of its options these were taken as arguments: {taken}" if taken else wrote,)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}..."


def _of_torchvision(builder: Any) -> bool:
    return str(getattr(builder, "__module__", "")).startswith("torchvision.")


def _call(spec: _Arch, builder: Any, kwargs: dict[str, Any]) -> nn.Module:
    if isinstance(builder, nn.Module):
        return builder
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = builder(*spec.args, **kwargs)
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"--arch {spec.text!r}: the call failed with {describe_error(error)}.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--arch {spec.text!r}: it gave a {type(model).__name__}, no nn.Module.")
    return model


def _classes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> int | None:
    """The number of outputs that the last layer of ``model`` has in ``state``, where it is another."""
    own = model.state_dict()
    last = next((name for name in reversed(own) if own[name].ndim in (1, 2)), None)
    if last is None or last not in state or own[last].shape[1:] != state[last].shape[1:]:
        return None
    outputs = int(state[last].shape[0])
    return outputs if outputs != own[last].shape[0] else None


def _load(arch: str, model: nn.Module, choice: ChosenWeights, saved: Checkpoint, strict: bool) -> tuple[str, ...]:
    """Copy the weights in; notes of what did not fit, where that is allowed."""
    own, state = model.state_dict(), choice.fitted.tensors
    misshapen = {name for name in own if name in state and own[name].shape != state[name].shape}
    fitting = {name: value for name, value in state.items() if name not in misshapen}
    missing, extra = _load_by_name(arch, model, fitting)
    missing = [name for name in missing if name not in misshapen]
    # Three lists, since each has a remedy of its own.
    shapes = [f"{name} is {_size(state[name])} and should be {_size(own[name])}" for name in own if name in misshapen]
    kinds = {
        "missing in the file": (missing, "they keep the values they were built with, untrained"),
        "not in the model": (extra, "they were left out"),
        "of another shape": (shapes, ""),
    }
    differing = {
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', and more' if len(names) > _SHOWN else ''})": meaning
        for kind, (names, meaning) in kinds.items()
        if names
    }
    if differing and (strict or misshapen):
        where = f" Taken were the {choice.words}; the file holds {saved.listed()}." if len(saved.weights) > 1 else ""
        raise InputError(
            f"the weights do not fit --arch {arch!r}. Of {len(own)} names, {'; '.join(differing)}.{where} Give the "
            "architecture and the arguments the file was trained with, such as torchvision:resnet18(num_classes=10)."
            + ("" if misshapen or not own.keys() & state.keys() else _NOT_STRICT)
        )
    return tuple(f"{what}: {meaning}" for what, meaning in differing.items())


def _load_by_name(arch: str, model: nn.Module, state: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """The names that the file lacks, and those that the model lacks."""
    try:
        # not strict, because layers may accept the names they had in older versions
        names = model.load_state_dict(state, strict=False)
    except Exception as error:
        if type(model).load_state_dict is nn.Module.load_state_dict:
            raise InputError(f"the weights do not fit --arch {arch!r}: {describe_error(error)}.") from error
        names = nn.Module.load_state_dict(model, state, strict=False)  # a class's own may refuse what is not its form
    if hasattr(names, "missing_keys"):
        return list(names.missing_keys), list(names.unexpected_keys)
    own = model.state_dict()  # a class's own may say nothing
    return [name for name in own if name not in state], [name for name in state if name not in own]


def _size(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a number"
