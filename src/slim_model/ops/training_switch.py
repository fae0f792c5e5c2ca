"""How an operator of a model in evaluation becomes that of the model in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from slim_model.graph.nodes import arguments_of

_MOMENTUM = 0.1  # torch.nn's own; an eval trace of a layer that keeps a cumulative mean holds 0, which learns nothing


@dataclass(frozen=True, slots=True)
class TrainingSwitch:
    """The ``argument`` is True in training.

    ``target`` takes the operator's place where this one lacks the argument. ``rate``: the argument that says which
    share of values is dropped. ``statistics``: an argument without which the switch is on in evaluation too, as there
    is nothing else to normalise by.
    """

    argument: str
    target: Any = None
    rate: str | None = None
    statistics: str | None = None

    def is_on(self, node: fx.Node) -> bool:
        """Whether ``node`` behaves as in training, and would not in evaluation."""
        given = arguments_of(node)
        needed = self.statistics is not None and given[self.statistics] is None
        return given.get(self.argument) is True and not needed

    def turn_on(self, node: fx.Node, dropout: float) -> None:
        """Make ``node`` that of training; of the rate that is dropped the share ``dropout`` stays."""
        arguments = arguments_of(node) | {self.argument: True}
        if self.rate is not None:
            arguments[self.rate] *= dropout
        if arguments.get("momentum") == 0.0:
            arguments["momentum"] = _MOMENTUM
        node.target = self.target or node.target
        schema: Any = node.target._schema  # type: ignore[union-attr]
        node.args = tuple(arguments.pop(a.name) for a in schema.arguments if not a.kwarg_only)
        node.kwargs = arguments
