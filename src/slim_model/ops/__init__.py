"""What slim-model knows of each ATen operator: one row in one table.

``OPS`` maps an operator to an ``Op``. An operator without a row pins what reaches it and is named in the report;
operators that PyTorch itself tags as pointwise need no row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slim_model.ops import along, contract, create, movement, norm, pointwise, recurrent
from slim_model.ops.cut import Cut, Part
from slim_model.ops.layer import Layer
from slim_model.ops.row import Op

__all__ = ["OPS", "Cut", "Layer", "Op", "Part", "flow_of", "row_of"]

_ELEMENTWISE = Op(pointwise.pointwise)

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
    return _ELEMENTWISE if any(torch.Tag.pointwise in overload.tags for overload in overloads) else None


def _out_of_place(target: torch._ops.OpOverload) -> torch._ops.OpOverloadPacket | None:
    """``aten.relu_`` is ``aten.relu``; an operator of that name elsewhere is something else."""
    name = target.overloadpacket.__name__
    return getattr(torch.ops.aten, name[:-1], None) if target.namespace == "aten" and name.endswith("_") else None


def flow_of(node: fx.Node) -> Any:
    row = row_of(node.target)
    return row.flow if row else None
