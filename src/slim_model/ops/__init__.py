"""What slim-model knows of each ATen operator: one row in one table.

``OPS`` maps an operator to an ``Op``. An operator without a row pins what reaches it and is named in the report;
operators that PyTorch itself tags as pointwise need no row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slim_model.ops import along, contract, create, movement, norm, pointwise, recurrent
from slim_model.ops.cut import Cut, Fraction
from slim_model.ops.layer import LayerShape
from slim_model.ops.linear_form import LinearForm
from slim_model.ops.row import Kind, Op

__all__ = ["OPS", "Cut", "Fraction", "LayerShape", "Op", "flow_of", "kind_of", "linear_form_of", "row_of"]

OPS: dict[Any, Op] = {
    **movement.ROWS,
    **pointwise.ROWS,
    **contract.ROWS,
    **norm.ROWS,
    **along.ROWS,
    **create.ROWS,
    **recurrent.ROWS,
}


def row_of(target: Any) -> Op | None:
    """The row of an operator: its own, that of its out-of-place form, or the pointwise one."""
    if not isinstance(target, torch._ops.OpOverload):
        return OPS.get(target)
    plain = _out_of_place(target)
    if row := OPS.get(target) or OPS.get(target.overloadpacket) or OPS.get(plain):
        return row
    overloads = [target, *(getattr(plain, name) for name in (plain.overloads() if plain else ()))]
    return pointwise.POINTWISE if any(torch.Tag.pointwise in overload.tags for overload in overloads) else None


def _out_of_place(target: torch._ops.OpOverload) -> torch._ops.OpOverloadPacket | None:
    """``aten.relu_`` is ``aten.relu``; an operator of that name elsewhere is something else."""
    name = target.overloadpacket.__name__
    return getattr(torch.ops.aten, name[:-1], None) if target.namespace == "aten" and name.endswith("_") else None


def flow_of(node: fx.Node) -> Any:
    row = row_of(node.target)
    return row.flow if row else None


def kind_of(node: fx.Node) -> Kind | None:
    """What the field calls the operator of ``node``; None where no stage asks for its name."""
    row = row_of(node.target)
    return row.kind if row else None


def linear_form_of(node: fx.Node) -> LinearForm | None:
    """``node`` as a layer that sums its operand times a weight; None where it is none."""
    row = row_of(node.target)
    return row.linear_form(node) if row and row.linear_form else None
