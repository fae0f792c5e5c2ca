"""For as long as it is traced, a model takes its tensors one by one, and returns a flat tuple of its outputs.

So that every tracer sees the same simple form, whatever the user's forward takes (keywords, containers, numbers) and
returns (data classes, distributions, numbers), and input names are those of the user's parameters.
"""

from __future__ import annotations

import contextlib
import inspect
import keyword
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from slim_model.calling.arguments import Arguments
from slim_model.calling.outputs import OutputForm, flatten_outputs

_OWN = ("forward", "_forward_hooks", "_forward_pre_hooks")


class FlatForward:
    """``outputs``: how the model nested what it returned last."""

    outputs: OutputForm


@contextlib.contextmanager
def flat_forward(model: nn.Module, arguments: Arguments) -> Iterator[FlatForward]:
    """Inside, ``model(*arguments.tensors)`` is ``arguments.call(model)``, flattened. The model is put back after."""
    found, attributes = FlatForward(), vars(model)
    own = {name: attributes[name] for name in _OWN if name in attributes}

    def forward(*tensors: Any) -> tuple[Tensor, ...]:
        given = arguments.filled(tensors)
        with _attributes(attributes, own):  # hooks see what they know
            returned = model._call_impl(*given.args, **given.kwargs)
        flat, found.outputs = flatten_outputs(returned)
        return flat

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = dict.fromkeys(identifiers(arguments.names(model)))
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    flat = {"forward": forward, "_forward_hooks": OrderedDict(), "_forward_pre_hooks": OrderedDict()}
    with _attributes(attributes, flat), _unchecked_distributions():
        yield found


@contextlib.contextmanager
def _attributes(attributes: dict[str, Any], new: dict[str, Any]) -> Iterator[None]:
    """Exchange those of ``_OWN`` for ``new``."""
    old = {name: attributes.pop(name) for name in _OWN if name in attributes}
    attributes.update(new)
    try:
        yield
    finally:
        for name in _OWN:
            attributes.pop(name, None)
        attributes.update(old)


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Their checks of parameters read values, which a trace does not have."""
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


def identifiers(names: tuple[str, ...]) -> list[str]:
    """Python names: ``batch.image`` -> ``batch_image``."""
    unique: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"input_{plain}"
        unique.append(plain if plain not in unique else f"{plain}_{len(unique)}")
    return unique
