"""The shape of a row: all that slim-model knows of an operator, one column a fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx

from slim_model.labels.values import Flow
from slim_model.ops.cut import Cut
from slim_model.ops.layer import LayerShape
from slim_model.ops.linear_form import LinearForm
from slim_model.ops.training_switch import TrainingSwitch

# fmt: off
Kind = Literal[
    "addition", "arithmetic", "assertion", "attention", "batch_norm", "cast", "convolution", "copy", "deviation",
    "division", "dropout", "einsum", "embedding", "group_norm", "instance_norm", "inverse", "join", "layer_norm",
    "linear", "matmul", "maximum", "mean", "minimum", "outer_product", "power", "recurrent", "relu", "rms_norm",
    "select", "softmax", "split", "subtraction", "transposed_convolution", "unbind", "unflatten", "variance", "view",
]
# fmt: on
"""What the field calls it, whatever overload or spelling is in the graph."""

Effect = Literal["rearranges", "moves", "pointwise", "spatial", "along", "contracts"]
"""What becomes of the values of the operands.

============  ========================================================================================
rearranges    every value of the one operand comes out once, in another shape or order of axes (view, permute)
moves         values come out somewhere else, some of them or several times (slice, cat, expand, pad)
pointwise     a value follows from the values at the same position
spatial       a value follows from values of the same channel at other positions of a map (pooling)
along         a value follows from those along an axis (softmax, sort, max)
contracts     products of values are summed (convolution, matmul)
============  ========================================================================================
"""

Curve = Literal["rectifier", "leaky", "saturating", "steps"]
"""How a pointwise function of one value runs.

============  ========================================================================================
rectifier     like ReLU, and exactly 0 for low values
leaky         like ReLU, and small but not 0 for low values (GELU, SiLU)
saturating    like ReLU, and near a constant below 0 for low values (ELU)
steps         constant between jumps, so that rounding may turn it (floor, sign)
============  ========================================================================================
"""


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    ``flow(walk, **arguments)`` gives the labels of the output from those of the inputs; arguments bear the names of
    the operator's schema. ``macs(out, **arguments)`` counts multiply-accumulates from shapes. ``rewrite(cut, node)``
    gives the arguments that change in the small graph (key ``target`` replaces the operator, key ``stored`` holds new
    values of stored constants, by name).

    ``masks`` says how the masked dense reference runs it: ``nothing`` (channels do not mix, or only move),
    ``inputs`` (it sums over channels: removed ones are zeroed first), ``kept`` (a statistic: runs over kept channels).
    ``over(input, **arguments)``, of a statistic: the axes of its input that it runs over, and in how many blocks each.
    ``layer(out, **arguments)`` says from shapes how the operator can be timed alone.

    What other stages ask, where there is an answer: ``kind``, its name; ``effect`` on values; the ``curve`` of an
    activation; ``linear_form(node)``, its operand, weight and bias where it is linear in one operand; and
    ``training_switch``, the argument that tells training from evaluation. ``returns_operand``: where there is nothing
    to do it gives its operand itself, although its schema does not say so.
    """

    flow: Flow
    macs: Callable[..., int] | None = None
    rewrite: Callable[[Cut, fx.Node], dict[str, Any]] | None = None
    masks: Literal["nothing", "inputs", "kept"] = "nothing"
    layer: Callable[..., LayerShape] | None = None
    over: Callable[..., tuple[list[int], int]] | None = None
    kind: Kind | None = None
    effect: Effect | None = None
    curve: Curve | None = None
    linear_form: Callable[[fx.Node], LinearForm | None] | None = None
    training_switch: TrainingSwitch | None = None
    returns_operand: bool = False

    @property
    def only_moves(self) -> bool:
        """Its values are those of its operands, or these in another type."""
        return self.effect in ("rearranges", "moves") or self.kind in ("copy", "cast")

    @property
    def keeps_channels(self) -> bool:
        """Channel i comes out as channel i, on the axis on which it comes in."""
        norms = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
        return self.effect in ("pointwise", "spatial") or self.kind in norms
