"""One model of the zoo through the whole pipeline: what could be traced, freed, proven and exported, and why not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from slim_model.coupling.attention_heads import couple_attention
from slim_model.coupling.coupling import Coupling
from slim_model.errors import SlimError
from slim_model.export.check_onnx import check_onnx
from slim_model.export.eager_model import EagerModel, runnable_form
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph, describe_inputs
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.simplifying.simplify import simplify

Row = dict[str, Any]
Builder = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
_LONGEST = 12
"""Reasons that are recorded of a model, those with most channels first."""


class _Stages:
    """Seconds of each stage, and the one that is under way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.now = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.now, started = name, time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def examine(builder: Builder, ratio: float, seed: int, *, trained: bool = False) -> Row:
    """The row of one model; ``fault`` and ``stage`` say where it stopped. Weights that are ``trained`` stay so."""
    row: Row = {"ratio": ratio, "seed": seed}
    stage = _Stages()
    try:
        for found in _steps(builder, Recipe.of(ratio=ratio, seed=seed), stage, trained):
            row |= found
    except Exception as error:
        kind = type(error).__name__
        row |= {
            "fault": f"{kind}: {str(error).strip()}"[:600],
            "stage": stage.now,
            "crash": not isinstance(error, SlimError),
        }
    return row | {"seconds": stage.seconds}


def _steps(builder: Builder, recipe: Recipe, stage: _Stages, trained: bool) -> Iterator[Row]:
    torch.manual_seed(recipe.seed)
    with stage("build"):
        model, inputs = builder()
        if not trained:
            enliven(model)
    yield {"params": sum(p.numel() for p in model.parameters()), "inputs": describe_inputs(inputs)}
    with stage("trace"):
        graph = simplify(trace(model, inputs))
    yield {"traced": "one run" if graph.program is None else "export", "dynamic_batch": graph.dynamic_batch}
    with stage("couple"):
        coupling = couple_attention(graph)
    yield _coupled(coupling)
    with stage("compile"):
        example = pytree.tree_unflatten(graph.inputs, pytree.tree_structure(inputs))
        compiled = compile_model(model, example, recipe, program=graph.program)
    yield _proven(compiled)
    with stage("module"):
        module, own, _ = make_small_module(model, compiled.small, compiled.dense)
    yield {"own_class": own}
    with stage("onnx"):
        yield _exported(runnable_form(compiled.small, module), recipe.seed)


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Fresh weights are zero or one in places, where a wrong channel would change nothing: draw those too."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        if "layer_scale" in name or name.endswith(("running_var", ".gamma_1", ".gamma_2")):
            tensor.uniform_(0.5, 1.5)
        elif bool((tensor == 0).all()):
            tensor.normal_(0, 0.05)
        elif bool((tensor == 1).all()):
            tensor.uniform_(0.5, 1.5)


def _coupled(coupling: Coupling) -> Row:
    kept: dict[tuple[str, str], list[Any]] = {}
    for pin in coupling.pinned:
        if not pin.is_output:
            entry = kept.setdefault((pin.op, pin.why), [0, pin.where])
            entry[0] += pin.channels
    ordered = sorted(kept.items(), key=lambda item: -item[1][0])[:_LONGEST]
    return {
        "free_share": round(coupling.free_share, 4),
        "groups": len(coupling.groups),
        "pinned": [{"op": op, "why": why, "channels": n, "where": where} for (op, why), (n, where) in ordered],
        "unknown_ops": sorted({op for op, _ in coupling.unknown}),
    }


def _proven(compiled: Compiled) -> Row:
    proof, coupling = compiled.proof, compiled.coupling
    return {
        "free_share_proven": round(coupling.free_share, 4),
        "masked_max_rel_error": proof.masked_max_rel_error,
        "layer_max_rel_error": proof.layer_max_rel_error,
        "ties": proof.ties,
        "batches": proof.batches,
        "macs": [compiled.dense_cost.macs, compiled.slim_cost.macs],
        "params_slim": compiled.slim_cost.params,
        "not_cut": sorted(coupling.labelled.pinned_nodes.values()),
        "warnings": list(compiled.warnings),
    }


def _exported(small: Graph | EagerModel, seed: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        try:
            to_onnx(small, path, opset=None, metadata={})
            return {"onnx_max_rel_error": check_onnx(path, small, onnx_batches(small, seed))}
        except Exception as error:  # the module is proven; that ONNX cannot say it is recorded as such
            return {"onnx_fault": f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]}
