"""Translation validation: the labels are walked again through the small graph."""

from __future__ import annotations

import torch

from slim_model.cutting.cut import CutFailed
from slim_model.errors import first_line
from slim_model.graph.graph import Graph
from slim_model.labels.label import label
from slim_model.labels.values import Replay
from slim_model.labels.walk import Walk
from slim_model.ops import flow_of


def check_structure(small: Graph, replay: Replay) -> int:
    """Walk the labels through the small graph; returns the number of ties that were checked."""
    walk = Walk(small, replay=replay)
    try:
        labelled = label(walk, flow_of)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AssertionError) as error:
        raise CutFailed(walk.node.name, first_line(error)) from error
    checked = 0
    for left, right, node in labelled.ties:
        if not torch.equal(left, right):
            raise CutFailed(node.name, "channels no longer line up")
        checked += len(left)
    for pin in labelled.pins:
        if pin.labels.any():
            raise CutFailed(pin.node.name, "a fixed position was removed")
    return checked
