"""Regions of lower precision inside a forward (``torch.autocast``) are computed in float32.

What they round away, a hundredth of a value, is more than a proof may leave open, and onnxruntime lacks most operators
in bfloat16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram


@contextlib.contextmanager
def in_float32() -> Iterator[set[str]]:
    """``torch.autocast`` changes nothing inside; yields the types that were asked for, such as ``bfloat16``."""
    asked: set[str] = set()

    def enter(region: Any) -> Any:
        if region._enabled:
            asked.add(_name(region.fast_dtype))
        return region

    def leave(region: Any, *_: Any) -> bool:
        return False

    with mock.patch.multiple(torch.autocast, __enter__=enter, __exit__=leave):
        yield asked


def autocast_types(program: ExportedProgram | None) -> set[str]:
    """The types of the regions that a program was exported with; their nodes are noted with these types."""
    if program is None:
        return set()
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return {
        _name(node.args[1])
        for graph in graphs
        for node in graph.nodes
        if getattr(node.target, "__name__", "") == "wrap_with_autocast" and node.args[2]
    }


def float32_note(types: Collection[str]) -> str:
    """What a report says of them."""
    return (
        f"its autocast regions ({', '.join(sorted(types))}) are computed in float32, in the proof and in the ONNX "
        "file; a PyTorch module of its own class keeps them"
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
