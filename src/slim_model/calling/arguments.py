"""What forward is called with: tensors by position or keyword, in containers, and values that are no tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from slim_model.calling.nesting import leaves_of, replaced


@dataclass(frozen=True, slots=True)
class Arguments:
    """``model(*args, **kwargs)``. What is no tensor in it is a constant of the model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Arguments | tuple[Any, ...]) -> Arguments:
        """Positional arguments, where they are no ``Arguments`` yet."""
        return inputs if isinstance(inputs, Arguments) else cls(tuple(inputs))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in order."""
        return tuple(leaf.value for leaf in leaves_of((self.args, self.kwargs)) if isinstance(leaf.value, Tensor))

    def filled(self, tensors: tuple[Any, ...]) -> Arguments:
        """The same nest over other tensors."""
        given = iter(tensors)
        args, kwargs = replaced((self.args, self.kwargs), lambda x: next(given) if isinstance(x, Tensor) else x)
        return Arguments(args, kwargs)

    @property
    def plain(self) -> bool:
        """Nothing but tensors by position."""
        return not self.kwargs and all(isinstance(x, Tensor) for x in self.args)

    def call(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    def names(self, model: nn.Module) -> tuple[str, ...]:
        """Of each tensor the parameter of ``model.forward``, with its keys: ``image``, ``batch.image``, ``views.0``."""
        return tuple(name for name, value in self._named(model) if isinstance(value, Tensor))

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """The parameters that ``args`` stand for."""
        return _positions(forward_parameters(model), len(self.args))

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """What a user should know of the arguments that are no tensors."""
        said = [f"{name}={x!r}" for name, x in self._named(model) if not isinstance(x, Tensor) and x is not None]
        return (f"no tensors, and so constants of the model: {', '.join(said)}",) if said else ()

    def _named(self, model: nn.Module) -> Iterator[tuple[str, Any]]:
        heads = self.heads(model)
        for (_, place, *path), value in leaves_of((dict(zip(heads, self.args, strict=True)), self.kwargs)):
            yield ".".join((place, *path)), value


def _positions(parameters: list[inspect.Parameter], count: int) -> tuple[str, ...]:
    """What the first ``count`` positional arguments are called."""
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    return (*named, *(f"{rest}.{number}" for number in range(count - len(named))))


def forward_parameters(model: nn.Module) -> list[inspect.Parameter]:
    """The parameters of ``model.forward``, without self; none where Python does not know them. A model that was read
    from a file has ``input_names``, in any letters."""
    if (names := getattr(model, "input_names", None)) is not None and not isinstance(model, torch.jit.ScriptModule):
        return [_InAnyLetters(name) for name in names]
    if isinstance(model, torch.jit.ScriptModule):
        schema = model.forward.schema  # type: ignore[attr-defined]
        return [_scripted(argument) for argument in schema.arguments[1:]]
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    keywords = _keywords_of_program(model)
    return [p.replace(kind=p.KEYWORD_ONLY) if p.name in keywords else p for p in parameters]


class _InAnyLetters(inspect.Parameter):
    """One whose name Python could not have, such as ``input.1``."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__("any", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._name = name


def _keywords_of_program(model: nn.Module) -> tuple[str, ...]:
    """What the module of an exported program takes by keyword alone, though its signature does not say so."""
    spec = getattr(model, "_in_spec", None) if isinstance(model, fx.GraphModule) else None
    return tuple(spec.children()[1].context) if spec is not None and spec.num_children == 2 else ()


def _scripted(argument: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
    return inspect.Parameter(argument.name, kind, default=default, annotation=str(argument.type))
