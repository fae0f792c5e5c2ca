"""Sizes that a user's modules keep as attributes, and split or view by: what they are in the small model.

``self.c`` of a block that splits its channels by ``(self.c, self.c)``, ``self.head_dim`` of an attention. What they
become is read off the graph: where the forward of that module makes a tensor with an axis of the old size, the same
node of the small graph has the new one. It is a guess, which whoever hands out the module has to test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from slim_model.cutting.resize import resize
from slim_model.graph.graph import Graph, module_path
from slim_model.graph.nodes import shape_of

Sizes = dict[str, dict[str, int]]
"""module -> attribute -> its value in the small model."""

_TIMES = ((1,), (1, 2, 3, 4))
"""What modules may multiply a size by before they view by it, as of queries, keys and values: guesses in turn."""


def remembered_sizes(model: nn.Module, dense: Graph, small: Graph) -> Iterator[Sizes]:
    """Guesses, the likeliest first, of which attributes in ``model`` (traced as ``dense``) are which other numbers in
    ``small``. A later guess holds all attributes that an earlier one does."""
    changed = _changed(dense, resize(small))
    for times in _TIMES:
        sizes: Sizes = {}
        for path, module in model.named_modules():
            if not type(module).__module__.startswith("torch.nn.") and (pairs := changed.get(path)):
                found = {name: new for name, x in _numbers(module) if (new := _new(x, pairs, times)) is not None}
                sizes |= {path: found} if found else {}
        if sizes:
            yield sizes


def set_sizes(module: nn.Module, sizes: Sizes) -> None:
    """Give the attributes in ``module`` these values."""
    for path, attributes in sizes.items():
        inside = module.get_submodule(path)
        for name, value in attributes.items():
            setattr(inside, name, value)


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Whole numbers that methods of the module's own class read; a number that others gave it means something else."""
    read = _names_read(type(module))
    return ((name, x) for name, x in vars(module).items() if type(x) is int and x > 1 and name in read)


def _names_read(cls: type[nn.Module]) -> set[str]:
    """What the code of methods names, but for that of constructors and of torch's own classes."""
    own = [kind for kind in cls.__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    methods = [x for kind in own for name, x in vars(kind).items() if name != "__init__" and hasattr(x, "__code__")]
    return {name for method in methods for name in method.__code__.co_names}


def _new(value: int, pairs: Mapping[int, set[int]], factors: tuple[int, ...]) -> int | None:
    """What ``value`` became; None where no axis had it or a multiple of it, or axes that became different."""
    for times in factors:
        found = pairs.get(value * times, set())
        if len(found) == 1 and (new := next(iter(found))) % times == 0:
            return new // times
    return None


def _changed(dense: Graph, small: Graph) -> dict[str, dict[int, set[int]]]:
    """By module: sizes of axes that its forward makes, and what each became where it changed."""
    before = {node.name: node for node in dense.nodes}
    changed: dict[str, dict[int, set[int]]] = {}
    for node in small.nodes:
        if node.op != "call_function" or node.name not in before:
            continue
        pairs = changed.setdefault(module_path(node), {})
        for old, new in zip(_shapes(before[node.name]), _shapes(node), strict=False):
            for size, other in zip(old, new, strict=False):
                if size != other:
                    pairs.setdefault(size, set()).add(other)
    return changed


def _shapes(node: fx.Node) -> list[tuple[int, ...]]:
    value: Any = node.meta.get("val")
    return [shape_of(x) for x in (value if isinstance(value, list | tuple) else [value]) if isinstance(x, Tensor)]
