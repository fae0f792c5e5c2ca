"""Inputs by name or place -> what forward is called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from slim_model.calling.arguments import Arguments, forward_parameters
from slim_model.errors import InputError
from slim_model.loading.example_inputs import make_inputs
from slim_model.loading.input_spec import InputSpec, TensorSpec

_NAME_THEM = "Name them, such as --input {name}=1x3x224x224"


def make_arguments(model: nn.Module, specs: Iterable[InputSpec], seed: int) -> Arguments:
    """The arguments that ``specs`` describe, with random tensors where they give no values."""
    specs = list(specs)

    def placed(*tensors: Tensor) -> Arguments:
        given = iter(tensors)
        values = [next(given) if isinstance(s.given, TensorSpec) else s.given.value for s in specs]
        return place(model, [(spec.name, value) for spec, value in zip(specs, values, strict=True)])

    tensor_specs = [s.given for s in specs if isinstance(s.given, TensorSpec)]
    return placed(*make_inputs(model, tensor_specs, seed, call=lambda *tensors: placed(*tensors).call(model)))


def place(model: nn.Module, given: Iterable[tuple[str, Any]]) -> Arguments:
    """Arguments for ``model``: without a name by place; else for the parameter of that name, in a dict or list where
    keys follow it (``batch.image``, ``views.0``). InputError: where forward does not take them."""
    parameters = forward_parameters(model)
    args: list[Any] = []
    named: dict[str, Any] = {}
    for name, value in given:
        if name:
            _put(named, [name] if name in {p.name for p in parameters} else name.split("."), value, name)
        else:
            args.append(value)
    named = {name: _lists(value) for name, value in named.items()}
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters):  # what comes by place is also for keywords
        keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in named]
        named |= dict(zip(keywords, args[count:], strict=False))
        args = args[:count] + args[count + len(keywords) :]
    return bind(parameters, args, named)


def split_given(parameters: list[inspect.Parameter], given: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position and by keyword: a tensor is one, a sequence has them by place, a mapping by name. A mapping
    whose keys are no parameters is itself the only argument."""
    if isinstance(given, Mapping):
        names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        any_name = not names and any(p.kind is p.VAR_KEYWORD for p in parameters)
        return ([], dict(given)) if any_name or set(given) <= names else ([given], {})
    return (list(given), {}) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else ([given], {})


def bind(
    parameters: list[inspect.Parameter], args: list[Any], named: Mapping[str, Any], *, advice: str = _NAME_THEM
) -> Arguments:
    """By position as far as forward takes them so, else by keyword."""
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    by_keyword = dict(named)
    extra = by_keyword.pop(rest, []) if rest else []
    for name in names[len(args) :]:  # as far as there is no gap
        if name not in by_keyword:
            break
        args = [*args, by_keyword.pop(name)]
    if isinstance(extra, list):
        args = [*args, *extra]
    _check(parameters, args, by_keyword, advice)
    return Arguments(tuple(args), by_keyword)


def _check(parameters: list[inspect.Parameter], args: list[Any], by_keyword: dict[str, Any], advice: str) -> None:
    if not parameters:
        return
    try:
        inspect.Signature(sorted(parameters, key=lambda p: p.kind)).bind(*args, **by_keyword)
    except (TypeError, ValueError) as error:
        takes = ", ".join(map(_shown, parameters))
        first = next((p.name for p in parameters if p.default is p.empty and p.name not in by_keyword), "image")
        raise InputError(
            f"forward takes ({takes}), and the inputs do not fit: {error}. {advice.format(name=first)}."
        ) from error


def _shown(parameter: inspect.Parameter) -> str:
    star = "*" * ((parameter.kind is parameter.VAR_POSITIONAL) + 2 * (parameter.kind is parameter.VAR_KEYWORD))
    optional = parameter.default is not parameter.empty
    return f"{star}{parameter.name}{'=...' if optional else ''}"


def _put(nest: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    *inner, last = path
    for key in inner:
        nest = nest.setdefault(key, {})
        if not isinstance(nest, dict):
            raise InputError(f"--input {name}=...: {key} is given as a whole, too. Give one or the other.")
    if last in nest:
        raise InputError(f"--input {name}=... is given twice.")
    nest[last] = value


def _lists(value: Any) -> Any:
    """A dict whose keys count from 0 as a list."""
    if not isinstance(value, dict):
        return value
    inner = {key: _lists(item) for key, item in value.items()}
    return [inner[key] for key in sorted(inner, key=int)] if set(inner) == set(map(str, range(len(inner)))) else inner
