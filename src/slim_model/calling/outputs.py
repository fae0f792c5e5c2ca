"""What a model returns -> its tensors, each with a name that tells, so that nothing is lost on the way to a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution
from torch.distributions.transforms import Transform
from torch.distributions.utils import lazy_property

from slim_model.calling.boxes import BoxForm
from slim_model.calling.nesting import parts_of
from slim_model.errors import InputError

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a nest output ``number`` stands; ``is_number``: the model has a number there, and no tensor."""

    number: int
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How a model nests its outputs.

    ``names`` of its tensors, in its order: keys and fields joined by dots (``policy.logits``), ``output_1`` for the
    second of a tuple, ``output`` for one tensor alone. ``nest``: tuples, lists and dicts with a ``Place`` for each, and
    None where the model returned None. ``unpacked``: (where, class) of other containers, which are dicts of their
    fields in ``nest``. ``numbers``: the names of what the model returns as numbers; ``empty``: where it returned None.
    ``boxes``: how the first output tells them, where its library says so.
    """

    names: tuple[str, ...] = ()
    nest: Any = ()
    unpacked: tuple[tuple[str, str], ...] = ()
    numbers: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    boxes: BoxForm | None = None

    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the outputs are written."""
        notes = [f"{_which(where)} is a {kind}; written are {self._inside(where)}" for where, kind in self.unpacked
                 if kind in _DISTRIBUTIONS]  # fmt: skip
        if self.numbers:
            notes.append(f"numbers among the outputs are written as tensors without axes: {', '.join(self.numbers)}")
        if self.empty:
            notes.append(f"the model returns None as {', '.join(map(_which, self.empty))}; nothing is written for it")
        return tuple(notes)

    def _inside(self, where: str) -> str:
        return ", ".join(name for name in self.names if not where or name.startswith(f"{where}."))


_DISTRIBUTIONS = frozenset(torch.distributions.__all__)


def flatten_outputs(returned: Any) -> tuple[tuple[Tensor, ...], OutputForm]:
    """The tensors among what forward ``returned``, and how they were nested. A number becomes a tensor without axes.

    InputError names what is no tensor, number, None or container that is known.
    """
    walk = _Walk()
    nest = walk.visit(returned, ())
    keyed = isinstance(returned, Mapping) and all(isinstance(key, str) and key for key in returned)
    names = _unique([".".join(path) if keyed else _name(path) for path in walk.paths])
    numbers = tuple(name for name, path in zip(names, walk.paths, strict=True) if path in walk.numbers)
    form = OutputForm(names, nest, tuple(walk.unpacked), numbers, tuple(map(_name, walk.empty)))
    return tuple(walk.tensors), form


def output_tensors(returned: Any) -> list[Tensor]:
    """The tensors of ``flatten_outputs``."""
    return list(flatten_outputs(returned)[0])


def output_form(returned: Any) -> OutputForm:
    """The form of ``flatten_outputs``."""
    return flatten_outputs(returned)[1]


class _Walk:
    """Visits what a model returned, and notes what it finds."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.paths: list[Path] = []
        self.numbers: set[Path] = set()
        self.unpacked: list[tuple[str, str]] = []
        self.empty: list[Path] = []

    def visit(self, value: Any, path: Path) -> Any:
        """The nest of ``value``, which stands at ``path``."""
        if value is None:
            self.empty.append(path)
            return None
        if isinstance(value, Tensor):
            return self._leaf(value, path)
        if (dtype := number_type(value)) is not None:
            self.numbers.add(path)
            return self._leaf(torch.scalar_tensor(value, dtype=dtype), path, is_number=True)
        if isinstance(value, Independent):  # says only how many axes are one event
            return self.visit(value.base_dist, path)
        parts = _parts(value)
        if parts is None:
            raise InputError(_refusal(value, path))
        nest = {name: self.visit(item, (*path, name)) for name, item in parts}
        if type(value) in (tuple, list):
            return type(value)(nest.values())
        if type(value) is not dict:
            self.unpacked.append((_name(path) if path else "", type(value).__name__))
        return nest

    def _leaf(self, value: Tensor, path: Path, *, is_number: bool = False) -> Place:
        self.tensors.append(value)
        self.paths.append(path)
        return Place(len(self.tensors) - 1, is_number)


def number_type(value: Any) -> torch.dtype | None:
    """Of the tensor that stands for a number; None for what is no number."""
    if isinstance(value, bool | torch.SymBool):
        return torch.bool
    if isinstance(value, int | torch.SymInt):
        return torch.int64
    return torch.float32 if isinstance(value, float | torch.SymFloat) else None


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Distribution):
        return list(_parameters(value)) or None
    if isinstance(value, Transform):
        return None if type(value).__module__ != Transform.__module__ else list(_settings(value))
    parts = parts_of(value)
    return None if parts is None else list(zip(parts.names, parts.values, strict=True))


def _parameters(value: Distribution) -> Iterator[tuple[str, Any]]:
    """What defines a distribution: the parameters that it was given, not those that follow from them."""
    names = [name for name in value.arg_constraints if not _follows(value, name)]
    names += [name for name in ("temperature",) if hasattr(value, name)]
    if isinstance(value, MixtureSameFamily):
        names = ["mixture_distribution", "component_distribution"]
    if isinstance(value, TransformedDistribution) and not names:
        yield "base_dist", value.base_dist
        yield "transforms", [transform for transform in value.transforms if list(_settings(transform))]
    given = getattr(value, "_param", None)  # of two forms, as of probs and logits, the one that was given
    names = [name for name in names if getattr(value, name) is given] or names
    yield from ((name, getattr(value, name)) for name in names)


def _follows(value: Distribution, name: str) -> bool:
    lazy = isinstance(inspect.getattr_static(type(value), name, None), lazy_property)
    return lazy and name not in vars(value)


def _settings(transform: Transform) -> Iterator[tuple[str, Any]]:
    """What a transform was given, and those inside it."""
    for name in ("loc", "scale", "exponent"):
        if name in vars(transform):
            yield name, getattr(transform, name)
    for name in ("parts", "transforms", "base_transform", "_inv"):
        inner = vars(transform).get(name)
        if isinstance(inner, Transform | list) and inner:
            yield name.strip("_"), inner


def _name(path: Path) -> str:
    """``policy.logits``; ``output_1.loc`` inside a tuple; ``output``."""
    if not path:
        return "output"
    first, *rest = path
    return ".".join((f"output_{first}" if first.isdigit() else first or "output", *rest))


def _unique(names: list[str]) -> tuple[str, ...]:
    """Each name once: ``a``, ``a_2``."""
    taken: dict[str, None] = {}
    for name in names:
        number, free = 1, name
        while free in taken:
            number, free = number + 1, f"{name}_{number + 1}"
        taken[free] = None
    return tuple(taken)


def _which(where: str) -> str:
    return f"'{where}'" if where else "the output"


def _refusal(value: Any, path: Path) -> str:
    kind = type(value)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    shown = f" ({value!r})" if isinstance(value, str) and len(value) < 40 else ""
    where = f"its output '{_name(path)}'" if path else "its output"
    return (
        f"the model returns a {name}{shown} as {where}, which no file can hold, and nothing that a model returns is "
        "left out. Let forward return tensors: alone, or in tuples, lists, dicts or data classes; a module around the "
        "model can pick them."
    )
