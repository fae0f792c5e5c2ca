"""What a Python caller gives as example inputs -> what forward is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from slim_model.calling.arguments import Arguments, forward_parameters
from slim_model.calling.nesting import leaves_of
from slim_model.errors import InputError
from slim_model.graph.modes import eval_mode
from slim_model.graph.tensor_trees import copy_tensors
from slim_model.loading.given.place_inputs import bind, split_given
from slim_model.loading.input_spec import describe_error

_NAME_THEM = "Give them by name, in a dict: slim(model, {{'{name}': tensor, ...}})"


def arguments_given(
    model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None
) -> Arguments:
    """A tensor, a sequence of positional arguments, or a mapping of arguments by name; with ``example_kwargs`` besides.

    A mapping whose keys are no parameters of forward is itself the only argument. The model is run on them once;
    InputError says in Python's words what was given that it cannot be run on.
    """
    parameters = forward_parameters(model)
    is_text = isinstance(example_inputs, str | bytes)
    if is_text or not isinstance(example_inputs, Tensor | Mapping | Sequence):
        raise InputError(f"example_inputs is a {_kind(example_inputs)}. {_instead(example_inputs)}")
    args, kwargs = split_given(parameters, example_inputs)
    kwargs |= example_kwargs or {}
    _check_leaves(args, kwargs, example_inputs)
    arguments = bind(parameters, args, kwargs, advice=_NAME_THEM)
    _check_runs(model, arguments)
    return arguments


def _check_leaves(args: list[Any], kwargs: dict[str, Any], example_inputs: Any) -> None:
    leaves = list(leaves_of((args, kwargs)))
    for (_, *path), value in leaves:
        if not isinstance(value, Tensor) and hasattr(value, "__array__"):
            raise InputError(f"input {'.'.join(path)} is a {_kind(value)}. {_instead(value)}")
    if not any(isinstance(leaf.value, Tensor) for leaf in leaves):
        sizes = [leaf.value for leaf in leaves]
        if sizes and all(isinstance(size, int) for size in sizes):
            listed = ", ".join(map(str, sizes))
            raise InputError(
                f"example_inputs is a {_kind(example_inputs)} of sizes. Give a tensor of that shape: "
                f"torch.randn({listed})."
            )
        raise InputError("no input is a tensor. Give at least one, such as torch.randn(1, 3, 224, 224).")


def _check_runs(model: nn.Module, arguments: Arguments) -> None:
    try:
        with eval_mode(model):
            arguments.filled(copy_tensors(arguments.tensors)).call(model)
    except Exception as error:  # whatever the user's model raises
        shapes = ", ".join(
            f"{name}: {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
            for name, x in zip(arguments.names(model), arguments.tensors, strict=True)
        )
        raise InputError(f"the model cannot run on these inputs ({shapes}): {describe_error(error)}.") from error


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _instead(value: Any) -> str:
    if hasattr(value, "__array__"):
        return "Give a tensor: torch.as_tensor(array)."
    return "Give a tensor, a tuple of the arguments of forward, or a dict of them by name."
