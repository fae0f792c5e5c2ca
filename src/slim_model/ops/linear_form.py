"""Linear layers of every kind (convolution, linear, matmul) in one form: a weight times an operand, summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from slim_model.graph.nodes import arguments_of, shape_of


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution looks at a map, one number for each axis of the map; zeros ``before`` and ``after`` it."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def sides(self) -> list[int]:
        """The zeros as ``F.pad`` takes them, the last axis first."""
        return [n for pair in reversed([*zip(self.before, self.after, strict=True)]) for n in pair]

    def on_maps(self) -> Window:
        """The same for height and width: a line is a map of height one."""
        if len(self.kernel) != 1:
            return self
        return Window((1, *self.kernel), (1, *self.stride), (1, *self.dilation), (0, *self.before), (0, *self.after))


@dataclass(frozen=True, slots=True)
class LinearForm:
    """The layer gives ``operand`` times ``weight``, plus ``bias``.

    ``weight`` is ``(outputs, inputs / groups, *kernel)``, without a kernel where there is no ``window``; where
    ``turned`` it is ``(inputs, outputs)``. Without a window the last axis of the operand is summed over.
    """

    operand: fx.Node
    weight: fx.Node
    bias: fx.Node | None = None
    window: Window | None = None
    groups: int = 1
    turned: bool = False


def window_of(kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> Window:
    """Arguments as operators take them: one number for all axes or one for each; a padding of "same" puts what is left
    over after, "valid" is none."""
    rank = len(kernel)
    dilations = each(dilation, rank)
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        before, after = tuple(s // 2 for s in spans), tuple(s - s // 2 for s in spans)
    else:
        before = after = each(padding, rank)
    return Window(tuple(kernel), each(stride, rank), dilations, before, after)


def each(value: Any, rank: int) -> tuple[int, ...]:
    """One number an axis: 2 -> (2, 2)."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))


# -- as each operator has it ----------------------------------------------------------------------------------------


def of_convolution(node: fx.Node) -> LinearForm | None:
    given = arguments_of(node)
    kernel = _shape(given["weight"])[2:]
    if given.get("transposed") or not kernel or not isinstance(given["groups"], int):
        return None
    window = window_of(kernel, given["stride"], given["padding"], given["dilation"])
    return LinearForm(given["input"], given["weight"], given["bias"], window, given["groups"])


def of_linear(node: fx.Node) -> LinearForm | None:
    given = arguments_of(node)
    return LinearForm(given["input"], given["weight"], given["bias"]) if len(_shape(given["weight"])) == 2 else None


def of_product(node: fx.Node) -> LinearForm | None:
    """``operand @ weight``; of two activations one may be taken for the weight."""
    operand, weight = list(arguments_of(node).values())[:2]
    return LinearForm(operand, weight, turned=True) if len(_shape(weight)) == 2 else None


def of_sum_and_product(node: fx.Node) -> LinearForm | None:
    """``bias + operand @ weight``"""
    given = arguments_of(node)
    if given["alpha"] != 1 or given["beta"] != 1:
        return None
    return LinearForm(given["mat1"], given["mat2"], given["self"], turned=True)


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return shape_of(value) if isinstance(value, Tensor) else ()
