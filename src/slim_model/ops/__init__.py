"""What slim-model knows of each ATen operator: one row in one table.

``OPS`` maps an operator to an ``Op``. An operator without a row pins what reaches it and is named in the report;
operators that PyTorch itself tags as pointwise need no row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slim_model.ops import along, contract, create, movement, norm, pointwise, recurrent
from slim_model.ops.layer import Layer
from slim_model.ops.row import Cut, Op

__all__ = ["OPS", "Cut", "Layer", "Op", "flow_of", "row_of"]

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
    packet = target.overloadpacket
    if row := OPS.get(target) or OPS.get(packet):
        return row
    if torch.Tag.pointwise in target.tags:
        return _ELEMENTWISE
    name = packet.__name__
    if name.endswith("_") and hasattr(torch.ops.aten, name[:-1]):
        functional = getattr(torch.ops.aten, name[:-1])
        return OPS.get(functional) or (
            _ELEMENTWISE
            if any(torch.Tag.pointwise in getattr(functional, o).tags for o in functional.overloads())
            else None
        )
    return None


def flow_of(node: fx.Node) -> Any:
    row = row_of(node.target)
    return row.flow if row else None
