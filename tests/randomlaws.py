"""randomlaws: what must hold of a random net that was slimmed, by checks that share nothing with the prover.

The reference is the user's own module with zeros written to every position of a removed channel, and with norms that
take their statistics over the kept positions. It knows the plan's slices, and nothing of graphs or labels.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from deadness import Alive, removing_the_dead_changes_nothing
from randomnets import RandomNet, random_nets
from slim_model.coupling.coupling import Coupling, Group
from slim_model.errors import ExportError, ProofError, SlimError
from slim_model.export.check_onnx import check_onnx, run_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.labels.values import tensors_in
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe

TOLERANCE = 1e-4
EXAMPLE, OTHER = (2, 1, 3), 5


@dataclass(frozen=True, slots=True)
class Case:
    """A net, how it is slimmed, and which of the slower checks are made."""

    net: RandomNet
    options: dict[str, Any]
    batch: int
    slower: str

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.net!r}# batch {self.batch}: slim(Net(), inputs, {options}); also checked: {self.slower or '-'}"


@st.composite
def cases(draw: Callable[[Any], Any], longest: int = 12) -> Case:
    net = draw(random_nets(longest))
    layers = [part.split(" =")[0].removeprefix("s.") for part in net.parts if "= nn." in part]
    keep = draw(st.sampled_from([(), (), (), tuple(layers[:1]), tuple(layers[-2:])]))
    options = {
        "ratio": draw(st.sampled_from([50, 25, 70, 90]) | st.integers(5, 95)) / 100,
        "criterion": draw(
            st.sampled_from(["l1", "l1", "random", "random", "l2", "l2", "fpgm", "fpgm", "lamp", "bn-scale"])
        ),
        "multiple_of": draw(st.sampled_from([1, 1, 1, 2, 4, "auto"])),
        "scope": draw(st.sampled_from(["local", "local", "global"])),
        "keep": tuple(f"{name}*" for name in keep),
        "seed": draw(st.integers(0, 3)),
        "static_batch": draw(st.sampled_from([False, False, False, True])),
    }
    slower = draw(st.sampled_from([*[""] * 13, "permuted", "permuted", "again", "onnx", "dead", "dead"]))
    return Case(net, options, draw(st.sampled_from(EXAMPLE)), slower)


class Wrong(AssertionError):
    """slim-model gave a result that breaks a law."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``status``: proven, refused (with ``reason``), or invalid (no net at all). ``pins``: (op, why) -> channels."""

    status: str
    reason: str = ""
    free: float = 0.0
    pins: Counter[tuple[str, str]] = field(default_factory=Counter)
    laws: tuple[str, ...] = ()


def outcome_of(case: Case) -> Outcome:
    """Slim the net and hold it against every law. Raises Wrong, or whatever slim-model should not have raised."""
    model = case.net.build()
    if not _is_net(model, case.net):
        return Outcome("invalid")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inputs = case.net.example(case.batch)
    recipe = Recipe.of(**case.options)
    try:
        found = compile_model(model, inputs, recipe)
    except ProofError as error:
        raise Wrong(f"refused as unproven: {error}") from error
    except SlimError as error:
        return Outcome("refused", _kind_of(error))
    if any(not torch.equal(v, before[k]) for k, v in model.state_dict().items()):
        raise Wrong("the user's model was changed")
    laws = [law.__name__ for law in LAWS if law(case, model, found)]
    pins = Counter[tuple[str, str]]()
    for pin in found.coupling.pinned:
        if not pin.is_output:
            pins[pin.op, pin.why] += pin.channels
    return Outcome("proven", "", found.coupling.free_share, pins, tuple(laws))


def _is_net(model: nn.Module, net: RandomNet) -> bool:
    """It runs, for several batch sizes, its values are finite, and it gives the same twice."""
    try:
        for batch in (*EXAMPLE, OTHER):
            outputs = outputs_of(model, net.example(batch))
            if not all(x.isfinite().all() and x.numel() and float(x.abs().max()) < 1e6 for x in outputs):
                return False
    except (RuntimeError, IndexError, ValueError):
        return False
    return True


def _kind_of(error: SlimError) -> str:
    text = str(error)
    for known in ("every channel is pinned", "removes no channel", "matches no layer", "there is none behind"):
        if known in text:
            return f"{type(error).__name__}: {known}"
    raise Wrong(f"a refusal nobody expects: {text}") from error


# -- the laws: each says whether it could be applied -----------------------------------------------------------------


def shapes_follow_the_plan(case: Case, model: nn.Module, found: Compiled) -> bool:
    """Every tensor is smaller by the positions removed from it, and by no others; the count of parameters is stated."""
    removed = removed_positions(found)
    for name, tensor in found.small.tensors.items():
        axes = removed.get(found.coupling.labelled.shared.get(name, name), {})
        lost = [int(axes[i].sum()) if i in axes else 0 for i in range(tensor.dim())]
        dense = found.dense.tensors[name].shape
        if not tensor.is_floating_point():  # an index: its values are rewritten
            continue
        if tuple(tensor.shape) != tuple(n - k for n, k in zip(dense, lost, strict=True)):
            raise Wrong(f"{name} has shape {tuple(tensor.shape)}: dense {tuple(dense)}, removed {lost}")
    module, own, _ = make_small_module(model, found.small)
    # Where the class computes a weight in its forward, and nothing of it was cut, it still holds what that needs.
    sources = {source for weight in found.small.folded for source in weight.sources} - found.small.tensors.keys()
    count = sum(p.numel() for name, p in module.named_parameters() if name not in sources)
    if own and count != found.slim_cost.params:
        raise Wrong(f"the small module has {count} parameters, the plan says {found.slim_cost.params}")
    return own


def every_input_varies(case: Case, model: nn.Module, found: Compiled) -> bool:
    """The proof saw two values of each."""
    if found.proof.same_inputs:
        raise Wrong(f"the proof saw one value of {', '.join(found.proof.same_inputs)}")
    return True


def options_are_obeyed(case: Case, model: nn.Module, found: Compiled) -> bool:
    """Kept layers keep what they make; widths are what the ratio says, or more."""
    for pattern in case.options["keep"]:
        for group in found.coupling.groups:
            for part in group.slices:
                if part.parameter.startswith(pattern[:-1]) and part.role == "makes" and part.channel.max() >= 0:
                    raise Wrong(f"{part.parameter} was to be kept and is free")
    for before, after in found.plan.widths:
        if not 1 <= after <= before:
            raise Wrong(f"a group of {before} channels has {after} left")
        if case.options["multiple_of"] == 1 and case.options["scope"] == "local":
            least = max(1, round(before * (1 - case.options["ratio"])))
            if after < least:
                raise Wrong(f"a group of {before} channels has {after} left, fewer than {least}")
    return True


def the_small_net_is_the_dense_one_without_dead_channels(case: Case, model: nn.Module, found: Compiled) -> bool:
    """Small graph and small module, on inputs and a batch size that nobody has seen, against the reference by zeros.

    There is a reference unless a statistic over channels is no module, or channels that are not 0 are summed.
    """
    inputs = case.net.example(OTHER if found.dense.dynamic_batch else found.proof.batches[0])
    small, *_ = make_small_module(model, found.small)
    runs: dict[str, Callable[[bool], list[Tensor]]] = {
        "small graph": lambda wide: _graph_outputs(found, inputs, wide),
        "small module": lambda wide: outputs_of(_wide(small) if wide else small, _widened(inputs) if wide else inputs),
    }
    traits = case.net.traits
    has_reference = "statistic" not in traits and not {"sum", "shift"} <= traits
    if has_reference:
        reference = dead_channels(model, _in_what_is_added(model, found, removed_positions(found)))
        runs["reference"] = lambda wide: outputs_of(
            _wide(reference) if wide else reference, _widened(inputs) if wide else inputs
        )
    for name in [n for n in runs if n != "small graph"]:
        assert_same(runs["small graph"], runs[name], f"small graph and {name}")
    return has_reference


def removing_nothing_changes_nothing(case: Case, model: nn.Module, found: Compiled) -> bool:
    """The dense graph is the model, for another batch size than the one it was traced with."""
    if not found.dense.dynamic_batch:
        return False
    inputs = case.net.example(OTHER)
    assert_same(lambda wide: outputs_of(model, inputs), lambda wide: found.dense.run(inputs), "model and its graph")
    return True


def coupled_channels_can_change_places(case: Case, model: nn.Module, found: Compiled) -> bool:
    if case.slower != "permuted" or "ordered" in case.net.traits:
        return False
    graph = found.dense
    for group in found.coupling.groups:
        order = _exchanged(found.coupling, group)
        if order is not None:
            permuted = graph.with_tensors(_permuted(found.coupling, group, order))
            assert_same(
                lambda wide: graph.run(graph.inputs),
                lambda wide, permuted=permuted: permuted.run(graph.inputs),
                f"dense graph and one with channels of {group.name} exchanged",
            )
    return True


def the_same_seed_gives_the_same_plan(case: Case, model: nn.Module, found: Compiled) -> bool:
    if case.slower != "again":
        return False
    again = compile_model(case.net.build(), case.net.example(case.batch), Recipe.of(**case.options))
    same = np.array_equal(found.plan.keep, again.plan.keep) and all(
        torch.equal(t, again.small.tensors[k]) for k, t in found.small.tensors.items()
    )
    if not same or str(found.small.module.graph) != str(again.small.module.graph):
        raise Wrong("a second run with the same seed gave another net")
    return True


def dead_channels_cost_nothing(case: Case, model: nn.Module, found: Compiled) -> bool:
    if case.slower != "dead":
        return False
    others = case.net.example(OTHER if found.dense.dynamic_batch else found.proof.batches[0])
    try:
        return removing_the_dead_changes_nothing(model, found, others, **case.options) == ""
    except Alive as error:
        raise Wrong(str(error)) from error


def the_onnx_file_computes_the_same(case: Case, model: nn.Module, found: Compiled) -> bool:
    if case.slower != "onnx" or "proj_size" in case.net.source:  # onnxruntime has no LSTM with projection
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        try:
            to_onnx(found.small, path, opset=None, metadata={})
            check_onnx(path, found.small, onnx_batches(found.small, 0))
        except (ExportError, ProofError):
            return False  # a clear refusal: torch.onnx cannot write it, or onnxruntime's norms round it away
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs = case.net.example(OTHER if found.dense.dynamic_batch else found.proof.batches[0])
        got = [torch.from_numpy(np.asarray(x)) for x in run_onnx(session, inputs)]
        names = [output.name for output in session.get_outputs()]
    if names != list(found.dense.outputs.names) or len(names) != len(outputs_of(model, inputs)):
        raise Wrong(f"the file has the outputs {names}, the model {found.dense.outputs.names}")
    assert_same(lambda wide: found.small.run(inputs), lambda wide: got, "small graph and ONNX file")
    return True


LAWS = (
    shapes_follow_the_plan,
    every_input_varies,
    options_are_obeyed,
    the_small_net_is_the_dense_one_without_dead_channels,
    removing_nothing_changes_nothing,
    coupled_channels_can_change_places,
    the_same_seed_gives_the_same_plan,
    dead_channels_cost_nothing,
    the_onnx_file_computes_the_same,
)


# -- running and comparing ------------------------------------------------------------------------------------------


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [x for x in pytree.tree_leaves(model(*(x.clone() for x in inputs))) if isinstance(x, Tensor)]


def _graph_outputs(found: Compiled, inputs: tuple[Tensor, ...], wide: bool) -> list[Tensor]:
    if not wide:
        return found.small.run(inputs)
    tensors = {k: _widened((t,))[0] for k, t in found.small.tensors.items()}
    return found.small.with_tensors(tensors).run(_widened(inputs))


def _wide(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def _widened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in tensors)


Run = Callable[[bool], list[Tensor]]


def assert_same(one: Run, other: Run, what: str) -> None:
    """Within 1e-4 of the largest value of each output; where float32 is not, float64 decides."""
    error = _error(one(False), other(False))
    if error <= TOLERANCE:
        return
    try:
        wide = _error(one(True), other(True))
    except RuntimeError:  # a cast in the forward leaves float32 and float64 side by side
        wide = error / 10
    if not wide <= TOLERANCE:
        raise Wrong(f"{what} differ by {wide:.1e}")


def _error(one: list[Tensor], other: list[Tensor]) -> float:
    if [x.shape for x in one] != [x.shape for x in other]:
        return float("inf")
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-3)) for a, b in zip(one, other, strict=True))


# -- the reference by zeros -----------------------------------------------------------------------------------------

Removed = dict[str, dict[int, np.ndarray]]
"""parameter -> axis -> which positions are removed."""


def removed_positions(found: Compiled) -> Removed:
    result: Removed = {}
    for group in found.coupling.groups:
        removed = ~found.plan.keep[group.channels]
        for part in group.slices:
            axes = result.setdefault(part.parameter, {})
            here = (part.channel >= 0) & removed[part.channel]
            axes[part.axis] = axes[part.axis] | here if part.axis in axes else here
    return result


def _in_what_is_added(model: nn.Module, found: Compiled, removed: Removed) -> Removed:
    """A weight to which a product of others is added (LoRA) is zero where these are, too."""
    state = dict(model.named_parameters())
    added: Removed = {}
    for weight in found.dense.folded:
        for source in weight.sources if weight.name in weight.sources else ():
            for axis, gone in removed.get(weight.name, {}).items():
                if source in state and state[source].dim() > axis and state[source].shape[axis] == len(gone):
                    added.setdefault(source, {})[axis] = gone
    return {name: removed.get(name, {}) | added.get(name, {}) for name in removed.keys() | added.keys()}


def dead_channels(model: nn.Module, removed: Removed) -> nn.Module:
    torch.backends.mha.set_fastpath_enabled(False)  # it would read the weights of norms behind their forward
    model = copy.deepcopy(model)
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, axes in removed.items():
        for axis, gone in axes.items():
            if name in state and state[name].is_floating_point() and gone.any():
                with torch.no_grad():
                    state[name].index_fill_(axis, torch.from_numpy(np.flatnonzero(gone)), 0)
    for name, module in model.named_modules():
        axes = removed.get(f"{name}.weight", {})
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.forward = functools.partial(_layer_norm_of_kept, module, axes)
        elif isinstance(module, nn.GroupNorm) and axes:
            module.forward = functools.partial(_group_norm_of_kept, module, ~axes[0])
    return model


def _layer_norm_of_kept(norm: Any, axes: dict[int, np.ndarray], x: Tensor) -> Tensor:
    weight, bias, first = norm.weight, getattr(norm, "bias", None), x.dim() - norm.weight.dim()
    kept = {axis: torch.from_numpy(np.flatnonzero(~gone)) for axis, gone in axes.items()}
    for axis, index in kept.items():
        x, weight = x.index_select(first + axis, index), weight.index_select(axis, index)
        bias = None if bias is None else bias.index_select(axis, index)
    if isinstance(norm, nn.RMSNorm):
        x = F.rms_norm(x, weight.shape, weight, norm.eps)
    else:
        x = F.layer_norm(x, weight.shape, weight, bias, norm.eps)
    for axis, index in kept.items():
        shape = [len(axes[axis]) if i == first + axis else n for i, n in enumerate(x.shape)]
        x = x.new_zeros(shape).index_copy(first + axis, index, x)
    return x


def _group_norm_of_kept(norm: nn.GroupNorm, kept: np.ndarray, x: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    for block in np.split(np.arange(norm.num_channels), norm.num_groups):
        if kept[block].any():
            index = torch.from_numpy(block[kept[block]])
            y = F.group_norm(x[:, index], 1, norm.weight[index], norm.bias[index], norm.eps)
            result = result.index_copy(1, index, y)
    return result


# -- permutations ---------------------------------------------------------------------------------------------------


def _exchanged(coupling: Coupling, group: Group) -> np.ndarray | None:
    """An order of the group's channels in which those that sit alike everywhere have changed places; None where a
    channel takes several positions, so that one would have to know which goes where."""
    if any(np.bincount(part.channel[part.channel >= 0]).max(initial=0) > 1 for part in group.slices):
        return None
    counts = [
        np.bincount(coupling.component[axis.numpy()], minlength=coupling.components)[group.channels]
        for value in tensors_in(coupling.labelled.values.values())
        for axis in value.axes
        if axis is not None
    ]
    kinds = np.stack(counts, axis=1)
    if kinds.max() > 1:
        return None
    order = np.arange(group.width)
    for kind in np.unique(kinds, axis=0):
        members = np.flatnonzero((kinds == kind).all(1))
        order[members] = np.roll(members, 1)
    return order


def _permuted(coupling: Coupling, group: Group, order: np.ndarray) -> dict[str, Tensor]:
    tensors = dict(coupling.graph.tensors)
    for part in group.slices:
        source = np.arange(len(part.channel))
        for channel in np.unique(part.channel[part.channel >= 0]):
            source[part.channel == channel] = np.flatnonzero(part.channel == order[channel])
        tensors[part.parameter] = tensors[part.parameter].index_select(part.axis, torch.from_numpy(source))
    return {k: tensors[coupling.labelled.shared.get(k, k)] for k in tensors}
