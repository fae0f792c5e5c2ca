"""The small PyTorch model as a file, and back again from a freshly built dense one."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from slim_model.atomic_write import beside
from slim_model.calling.arguments import Arguments
from slim_model.coupling.attention_heads import couple_attention, find_heads
from slim_model.coupling.coupling import Coupling
from slim_model.coupling.options import CouplingOptions
from slim_model.cutting.remembered_sizes import set_sizes
from slim_model.cutting.resize import resize
from slim_model.cutting.shrink_graph import shrink
from slim_model.cutting.shrink_module import shrink_module
from slim_model.errors import InputError, first_line
from slim_model.factoring.write_factors import written_again
from slim_model.graph.as_module import NestedGraph, graph_module
from slim_model.graph.graph import Factor, Factored, Folded, Graph, PlainLayer
from slim_model.graph.modes import silence_torch
from slim_model.graph.options import TracingOptions
from slim_model.graph.other_inputs.other_sizes import resized
from slim_model.graph.stored_tensors import shared_names, storage_key
from slim_model.proof.capture import capture
from slim_model.proof.own_module import SmallModule

RemovedSlices = dict[str, dict[str, list[int]]]
"""tensor -> axis -> positions that are gone."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed from the dense model, as a file remembers it. ``arguments``: the dense model's example.
    ``removed``: for each tensor and axis the positions that are gone, over all passes; ``passes``: what attention lost
    in each (``heads`` or ``width``), and what it removed from what it was given. ``factored``: the layers that were
    factored ahead of them. ``ratio``: None where a target took its place. The rest are options of the run."""

    arguments: Arguments
    removed: RemovedSlices
    passes: tuple[tuple[str, RemovedSlices], ...]
    ratio: float | None
    coupling: CouplingOptions = field(default_factory=CouplingOptions)
    tracing: TracingOptions = TracingOptions()
    factored: tuple[Factored, ...] = ()


def removed_slices(dense: Graph, kept: Mapping[tuple[str, int], np.ndarray]) -> RemovedSlices:
    """The positions that are gone, from those that are left (``Removed.kept_positions``)."""
    removed: RemovedSlices = {}
    for (owner, axis), positions in kept.items():
        size = dense.tensors[owner].shape[axis]
        removed.setdefault(owner, {})[str(axis)] = np.setdiff1d(np.arange(size), positions).tolist()
    return removed


def save(small: Graph, module: SmallModule, path: Path, removal: Removal, *, content: Any = None) -> None:
    """Write the small model in the format of ``path``'s ending; the file appears only when it is whole.

    ``.pt2``: a torch.export archive, loads without the user's class. ``.safetensors``: weights, with ``removal`` as
    metadata (see ``restore``). ``.pt``: the pickled module, or ``content`` with it inside. Raises InputError where it
    cannot be written.
    """
    try:
        with beside(path) as temporary:
            if path.suffix == ".pt2":
                _save_program(small, temporary)
            elif path.suffix == ".safetensors":
                _save_weights(small, module, temporary, removal)
            else:
                archive = io.BytesIO()  # a file's archive would bear its name
                torch.save(module.module if content is None else content, archive)
                temporary.write_bytes(archive.getbuffer())
    except (OSError, RuntimeError, safetensors.SafetensorError, pickle.PicklingError, AttributeError) as error:
        hint = " Try .pt2 or .safetensors." if path.suffix == ".pt" else ""
        raise InputError(f"cannot write {path}: {first_line(error)}.{hint}") from error


def _save_program(small: Graph, path: Path) -> None:
    """Export once more, so that the archive holds nothing of the dense model."""
    inputs = resized(small, {name: 2 for name, size in small.free.example.items() if size < 2})  # 1 is taken for fixed
    given, module, free = small.arguments.filled(inputs), graph_module(small), torch.export.ShapesCollection()
    module = module.signed() if isinstance(module, NestedGraph) else module
    for x, axes in zip(inputs, small.free.sizes, strict=False):
        if axes:
            free[x] = dict.fromkeys(axes, torch.export.Dim.AUTO)
    shapes = free.dynamic_shapes(module, given.args, given.kwargs)
    with silence_torch(), torch.no_grad():
        program = torch.export.export(module, given.args, given.kwargs, dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("from_node", None)  # holds addresses in memory
    archive = io.BytesIO()  # PyTorch's writer aborts the process where a disk is full
    torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())


def _save_weights(small: Graph, module: SmallModule, path: Path, removal: Removal) -> None:
    state = module.module.state_dict() if module.own else small.tensors
    shared = shared_names(state)  # stored once
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items() if name not in shared}
    metadata = {
        "format": "slim-model/1",
        "form": "module" if module.own else "graph",
        "inputs": json.dumps(_described([removal.arguments.args, removal.arguments.kwargs])) if not module.own else "",
        "removed": json.dumps(removal.removed),
        "steps": json.dumps(removal.passes),
        "recipe": json.dumps({"ratio": removal.ratio} | asdict(removal.coupling) | asdict(removal.tracing)),
    }
    if module.sizes:
        metadata["sizes"] = json.dumps(module.sizes)
    if small.folded:
        metadata["folded"] = json.dumps([asdict(weight) for weight in small.folded])
    if removal.factored:
        metadata["factored"] = json.dumps([asdict(layer) for layer in removal.factored])
    path.write_bytes(_sorted(safetensors.torch.save(tensors, metadata)))


def _sorted(archive: bytes) -> bytes:
    """The same safetensors archive with its metadata in order; safetensors 0.5 to 0.8 shuffle it at each run."""
    end = 8 + int.from_bytes(archive[:8], "little")
    header = json.loads(archive[8:end])
    ordered = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header | {"__metadata__": ordered}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + archive[end:]


def restore(model: nn.Module, file: str | Path) -> nn.Module:
    """Shrink a freshly built dense ``model`` to the small one saved in ``file`` (.safetensors), with its weights.

    ``model`` is not changed. No pickle is read. Where the model's forward has sizes of its own, the result is the
    traced graph as a module.
    """
    try:
        with safetensors.safe_open(str(file), "pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from error
    if metadata.get("format") != "slim-model/1":
        raise InputError(f"{file} was not written by slim-model --save: it holds no plan.")
    if metadata["form"] == "module":
        return _restore_module(model, tensors, metadata, str(file))
    return _restore_graph(model, tensors, metadata, str(file))


def _restore_module(model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], file: str) -> nn.Module:
    folded = [_folded(weight) for weight in json.loads(metadata.get("folded", "[]"))]
    if folded:  # a copy that already has plain layers, of the dense model's sizes
        model = shrink_module(
            model, {weight.name: torch.empty(weight.shape, device="meta") for weight in folded}, folded
        )
    factored = _factored(metadata)
    if factored:  # a copy that has the layers in a row, with all their ranks
        try:
            model = shrink_module(model, _empty(factored), (), factored)
        except AttributeError as error:
            raise InputError(f"{file} does not belong to this model: {first_line(error)}.") from error
    _check_belongs(model, tensors, json.loads(metadata["removed"]), file)
    small = shrink_module(model, tensors).eval()
    _set_groups(small, factored, json.loads(metadata["removed"]))
    set_sizes(small, json.loads(metadata.get("sizes", "{}")))
    return small


def _set_groups(model: nn.Module, factored: list[Factored], removed: RemovedSlices) -> None:
    """Of factors that make terms of each input: which inputs are left follows from the terms that are."""
    for factor in (factor for layer in factored for factor in layer.factors if factor.grouped):
        terms = factor.shape[0] // factor.options["groups"]
        left = np.delete(np.arange(factor.shape[0]), removed.get(factor.weight, {}).get("0", []))
        convolution: Any = model.get_submodule(factor.weight.removesuffix(".weight"))
        convolution.groups = convolution.in_channels = len(np.unique(left // terms))


def _factored(metadata: dict[str, str]) -> list[Factored]:
    return [
        Factored(**layer | {"shape": tuple(layer["shape"]), "factors": tuple(map(_factor, layer["factors"]))})
        for layer in json.loads(metadata.get("factored", "[]"))
    ]


def _factor(given: dict[str, Any]) -> Factor:
    return Factor(**given | {"shape": tuple(given["shape"])})


def _empty(factored: list[Factored]) -> dict[str, Tensor]:
    """Tensors of the sizes that the factors had before any rank went, without values."""
    tensors = {}
    for factor in (factor for layer in factored for factor in layer.factors):
        tensors[factor.weight] = torch.empty(factor.shape)
        if factor.bias is not None:
            tensors[factor.bias] = torch.empty(factor.shape[0])
    return tensors


def _folded(given: dict[str, Any]) -> Folded:
    layer = given["layer"] and PlainLayer(**given["layer"])
    return Folded(**given | {"sources": tuple(given["sources"]), "shape": tuple(given["shape"]), "layer": layer})


def _check_belongs(model: nn.Module, tensors: dict[str, Tensor], removed: dict[str, Any], file: str) -> None:
    """Every tensor of the file is one of ``model`` less what was removed, and the other way round."""
    state = model.state_dict(keep_vars=True)
    given = {storage_key(tensor) for name, tensor in state.items() if name in tensors}
    missing = [name for name in tensors if name not in state]
    missing += [name for name, tensor in state.items() if storage_key(tensor) not in given]
    if missing:
        raise InputError(
            f"{file} does not belong to this model: '{missing[0]}' is not in both ({len(missing)} in all)."
        )
    for name, tensor in tensors.items():
        kept = list(state[name].shape)
        for axis, gone in removed.get(name, {}).items():
            kept[int(axis)] -= len(gone)
        if kept != list(tensor.shape):
            raise InputError(
                f"{file} does not belong to this model: '{name}' is {kept} here, and {list(tensor.shape)} there."
            )


def _restore_graph(model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], file: str) -> nn.Module:
    recipe = json.loads(metadata["recipe"])
    arguments = Arguments(*_example(json.loads(metadata["inputs"])))
    asked = TracingOptions(recipe["static_batch"], tuple(recipe.get("dynamic", ())), recipe.get("random", "refuse"))
    graph = capture(model, arguments, asked)
    if factored := _factored(metadata):
        graph = written_again(graph, factored, _empty(factored))
    heads = find_heads(graph)
    for loses, removed in json.loads(metadata["steps"]):
        keep, equal_pieces = tuple(recipe["keep"]), recipe.get("equal_pieces", False)
        coupling = couple_attention(graph, loses=loses, heads=heads, keep=keep, equal_pieces=equal_pieces)
        graph = resize(shrink(coupling, _keep(coupling, removed, file))[0])
    for name, tensor in tensors.items():
        here = graph.tensors.get(name)
        if here is None or here.shape != tensor.shape:
            sizes = "missing here" if here is None else f"{list(here.shape)} here, {list(tensor.shape)} there"
            raise InputError(f"{file} does not belong to this model: '{name}' is {sizes}.")
    # What several names share is in the file under the first of them.
    given = {storage_key(graph.tensors[name]): tensor for name, tensor in tensors.items()}
    if missing := [name for name, tensor in graph.tensors.items() if storage_key(tensor) not in given]:
        raise InputError(f"{file} does not belong to this model: '{missing[0]}' is missing there.")
    values = {name: given[storage_key(tensor)] for name, tensor in graph.tensors.items()}
    return graph_module(graph.with_tensors(values)).eval()


def _keep(coupling: Coupling, removed: dict[str, dict[str, list[int]]], file: str) -> np.ndarray:
    keep = coupling.keep_all()
    for owner, axes in removed.items():
        births = {str(b.axis): b for b in coupling.births_of(owner)}
        if any(axis not in births or max(gone) >= births[axis].size for axis, gone in axes.items()):
            raise InputError(f"{file} does not belong to this model: it cuts '{owner}', which this one lacks.")
        for axis, gone in axes.items():
            left = np.ones(births[axis].size, bool)
            left[np.array(gone)] = False
            keep[coupling.channels_gone(births[axis], left)] = False
    return keep


def _described(value: Any) -> Any:
    """An argument as JSON: of a tensor its shape and type, of what is no tensor the value."""
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(item) for item in value]}
    if type(value) is dict:
        return {"dict": {key: _described(item) for key, item in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise InputError(f"an input is a {type(value).__name__}, which .safetensors has no form for. Try .pt2.")


def _example(described: dict[str, Any]) -> Any:
    """Zeros for tensors, in the nest that was ``_described``."""
    if "shape" in described:
        return torch.zeros(described["shape"], dtype=getattr(torch, described["dtype"]))
    if "dict" in described:
        return {key: _example(item) for key, item in described["dict"].items()}
    for kind in (list, tuple):
        if kind.__name__ in described:
            return kind(map(_example, described[kind.__name__]))
    return described["value"]
