"""Our criteria in Torch-Pruning, and Torch-Pruning's pruner behind our proof.

    importance = Importance("apoz", model, example_inputs, data=loader)
    tp.pruner.BasePruner(model, example_inputs, importance=importance, pruning_ratio=0.5).step()

``--engine torch-pruning`` lets its pruner decide what goes. Which positions of each parameter it left is read off
tags; they are cut out of our graph, which is proven as ever, and its module must compute what that graph does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from slim_model.budget.goal import ChosenPlan, Task
from slim_model.budget.plan import Plan
from slim_model.calling.outputs import output_tensors
from slim_model.coupling.attention_heads import couple_attention
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.shrink_module import shrink_module
from slim_model.data.loss import Loss
from slim_model.data.open_data import open_data
from slim_model.errors import InputError, ProofError
from slim_model.graph.graph import Graph
from slim_model.loading.input_spec import describe_error
from slim_model.proof.capture import capture
from slim_model.proof.tolerance import TOLERANCE, relative_error
from slim_model.ranking.criteria import Criterion
from slim_model.ranking.score import score


class Importance(tp.importance.Importance):
    """A criterion of slim-model for the pruners of Torch-Pruning: higher = keep.

    ``data`` and ``options`` as ``slim_model.data.open_data`` takes them. Scores are computed for the whole model when
    they are first asked for, and again when layers have changed size. ``normalise`` divides a group's scores by their
    mean, so that groups compare under ``global_pruning``, as Torch-Pruning's own criteria do. Channels that must stay
    (outputs) score highest; name such layers in ``ignored_layers``.
    """

    def __init__(
        self,
        criterion: str | Criterion,
        model: nn.Module,
        example_inputs: Tensor | Sequence[Any],
        *,
        data: Any = None,
        loss: Loss | None = None,
        seed: int = 0,
        normalise: bool = True,
        **options: Any,
    ) -> None:
        self.criterion, self.model, self.normalise = criterion, model, normalise
        self.inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
        self.data, self.loss, self.seed, self.options = data, loss, seed, options
        self._sizes: tuple[Any, ...] = ()
        self._table: _Table

    def __call__(self, group: Any) -> Tensor:
        sizes = tuple((name, tuple(p.shape)) for name, p in self.model.named_parameters())
        if sizes != self._sizes:
            self._table, self._sizes = self._scored(), sizes
        result = self._table.of(group, {module: name for name, module in self.model.named_modules()})
        return result / result.mean().clamp(min=1e-12) if self.normalise else result

    def _scored(self) -> _Table:
        with torch.enable_grad():
            coupling = couple_attention(capture(self.model, self.inputs))
        data = None
        if self.data is not None:
            fixed = not coupling.graph.dynamic_batch
            data = open_data(self.data, coupling.graph.inputs, seed=self.seed, fixed_batch=fixed, **self.options)
        return _Table(coupling, score(coupling, self.criterion, seed=self.seed, data=data, loss=self.loss))


@dataclass(frozen=True, slots=True)
class _Table:
    """Scores, to be looked up by position of a parameter."""

    coupling: Coupling
    scores: list[Tensor]

    def of(self, group: Any, names: dict[nn.Module, str]) -> Tensor:
        """One score for each root index of a Torch-Pruning group, from the first layer of it that is ours."""
        by_component = np.full(self.coupling.components, np.nan)
        for ours, scores in zip(self.coupling.groups, self.scores, strict=True):
            by_component[ours.channels] = scores.numpy()
        for item in group:
            labels = self._labels(item, names)
            if labels is None or len(labels) != len(group[0].idxs):
                continue
            own = by_component[self.coupling.component[labels]]
            if not np.isnan(own).all():
                highest = np.nanmax(own)
                return torch.from_numpy(np.where(np.isnan(own), highest + abs(highest) + 1, own))
        name = names.get(group[0].dep.target.module, "?")
        raise InputError(
            f"slim-model ranks no channel of the group of '{name}': they are fixed, or made by no layer. "
            "Put the layer in ignored_layers."
        )

    def _labels(self, item: Any, names: dict[nn.Module, str]) -> np.ndarray | None:
        """Labels of the positions of a weight that a member of a group prunes."""
        module = item.dep.target.module
        weight = getattr(module, "weight", None)
        if module not in names or not isinstance(weight, Tensor):
            return None
        into = getattr(item.dep.handler, "__name__", "").endswith("in_channels") and weight.dim() > 1
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        axis = int(into != transposed) if weight.dim() > 1 else 0
        births = {b.axis: b for b in self.coupling.births_of(f"{names[module]}.weight".lstrip("."))}
        if axis not in births or max(item.idxs) >= births[axis].size:
            return None
        return births[axis].start + np.asarray(item.idxs)


# -- its pruner behind our proof ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """What Torch-Pruning made: its module, and the channels it left."""

    module: nn.Module
    plan: Plan


def plan_by_torch_pruning(task: Task) -> ChosenPlan:
    """The plan of Torch-Pruning's pruner under our scores, and a check of the module it made."""
    goal = task.goal
    peer = prune(
        task.model,
        task.coupling,
        task.scores,
        ratio=goal.ratio,
        one_ranking=goal.allocation.kind == "global",
        round_to=goal.block,
    )
    return ChosenPlan(peer.plan, lambda small, batches: check(peer, small, batches))


def prune(
    model: nn.Module, coupling: Coupling, scores: list[Tensor], *, ratio: float, one_ranking: bool, round_to: int
) -> Peer:
    """Run Torch-Pruning on a copy of ``model`` with our scores. Raises ProofError where it fails or parts what is
    coupled."""
    graph = coupling.graph
    twin = shrink_module(model, graph.tensors, graph.folded).eval()
    fixed = [m for name, m in twin.named_modules() if name in {p.name for p in coupling.pinned}]
    table, names = _Table(coupling, scores), {module: name for name, module in twin.named_modules()}

    def importance(group: Any) -> Tensor:
        worth = table.of(group, names)
        return worth / worth.mean().clamp(min=1e-12)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                twin,
                graph.inputs,
                forward_fn=lambda net, given: [x for x in output_tensors(graph.call(net, given)) if x.requires_grad],
                importance=importance,
                pruning_ratio=ratio,
                global_pruning=one_ranking,
                ignored_layers=fixed,
                round_to=round_to if round_to > 1 else None,
            )
            originals = _tagged(twin)
            pruner.step()
        kept = _untagged(twin, originals)
    except InputError:
        raise
    except Exception as error:  # whatever its tracer and pruners raise
        raise _refused(f"it failed with {describe_error(error)}") from error
    return Peer(twin, _plan(coupling, kept))


def check(peer: Peer, small: Graph, batches: Sequence[tuple[Any, ...]]) -> None:
    """Its module must compute what the proven graph does."""
    for inputs in batches:
        try:
            with torch.no_grad():
                outputs = output_tensors(small.call(peer.module, inputs))
        except Exception as error:  # the user's forward may fail in any way on other sizes
            raise _refused(f"its module does not run: {describe_error(error)}") from error
        errors = [relative_error(a, b) for a, b in zip(small.run(inputs), outputs, strict=True)]
        if max(errors, default=0.0) > TOLERANCE:
            raise _refused(f"its module differs from the masked dense model by {max(errors):.1e}")


def _refused(why: str) -> ProofError:
    return ProofError(
        f"Torch-Pruning {version('torch-pruning')} gave no right result: {why}. Nothing was written. "
        "Leave out --engine torch-pruning."
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def _tagged(module: nn.Module) -> dict[str, Tensor]:
    """Write each position's number in its place; returns what stood there."""
    originals = {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}
    for tensor in _tensors(module).values():
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
    return originals


def _untagged(module: nn.Module, originals: dict[str, Tensor]) -> dict[tuple[str, int], np.ndarray]:
    """(name, axis) -> positions left, read off the tags; the values are put back."""
    kept: dict[tuple[str, int], np.ndarray] = {}
    for name, tensor in _tensors(module).items():
        original, tags = originals[name], tensor.detach().long()
        if tags.dim() != original.dim() or not tags.numel():
            raise ValueError(f"{name} became {tuple(tags.shape)}")
        value, numbers = original, torch.arange(original.numel()).view(original.shape)
        for axis in range(tags.dim()):
            line = tags.movedim(axis, 0).reshape(tags.shape[axis], -1)[:, 0]
            inside = int(np.prod(original.shape[axis + 1 :]))
            left = line // inside % original.shape[axis]
            kept[name, axis] = left.numpy()
            value = value.index_select(axis, left)
            numbers = numbers.index_select(axis, left)
        if not torch.equal(numbers, tags):
            raise ValueError(f"{name} holds values out of order")
        tensor.data = value.clone()
    return kept


def _plan(coupling: Coupling, kept: dict[tuple[str, int], np.ndarray]) -> Plan:
    """The channels that are left everywhere; a channel left in one place and gone from another is a fault."""
    gone = ~coupling.keep_all()
    left = np.zeros_like(gone)
    owner: dict[int, str] = {}
    for birth in coupling.labelled.births:
        if (birth.owner, birth.axis) not in kept:
            continue
        labels = np.arange(birth.start, birth.start + birth.size)
        here = np.isin(np.arange(birth.size), kept[birth.owner, birth.axis])
        left[coupling.component[labels[here]]] = True
        gone[coupling.component[labels[~here]]] = True
        owner |= dict.fromkeys(coupling.component[labels[~here]].tolist(), birth.owner)
    if gone[0]:
        raise _refused(f"it removed positions of {owner[0]} that must stay, such as an output of the model")
    if (gone & left).any():
        first = int(np.flatnonzero(gone & left)[0])
        raise _refused(f"it removed a channel from {owner[first]} and left it in what is coupled to it")
    keep = ~gone
    widths = tuple((group.width, int(keep[group.channels].sum())) for group in coupling.groups)
    return Plan(keep, widths)
