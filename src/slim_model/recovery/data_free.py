"""Data-free recovery: moments of channels are estimated from filters and BatchNorms, then folded as with data.

What each channel hands on is taken as a rectified normal (``rectified_normal``): its variance is the squared scale of
the BatchNorm behind its filter and its mean the shift, or without one the filter's squared norm and 0. With the
products of all channels so expected, the removed are folded into the others as in ``affine``. That is neuron merging
(Kim et al. 2020: each removed filter goes to the most similar one, times the ratio of norms) with all partners at once.
A BatchNorm behind gets the variance that is expected to be left (the repair of Jordan et al. 2023, before the fact).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.coupling.attention_heads import couple_attention
from slim_model.coupling.coupling import Coupling
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of, shape_of
from slim_model.labels.values import Value
from slim_model.ops import row_of
from slim_model.ranking.evidence.moments import Covariances, Moments
from slim_model.ranking.evidence.rectified_normal import expected_products
from slim_model.recovery.linear_layers import LinearLayer, is_norm, norm_behind
from slim_model.recovery.ridge import InputMoments, RidgeProblem, RidgeSolution, problem_of, solve_ridge

RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class _MadeChannels:
    """Filters of one layer, ``vector (channel, rest)``, of the squared norm that is the variance; ``known``: that and
    ``mean`` are a BatchNorm's."""

    component: np.ndarray
    vector: Tensor
    mean: Tensor
    known: bool


def merge(dense: Graph, small: Graph, layers: list[LinearLayer]) -> tuple[Graph, dict[str, str]]:
    """The small graph with what was removed folded into its readers, and for each of these what it took. Weights that
    are used more than once read channels of several places, and are left."""
    layers = [layer for layer in layers if not layer.repeated]
    coupling, nodes = couple_attention(dense), {node.name: node for node in dense.nodes}
    made = [_made(coupling, nodes[layer.node], layer) for layer in layers]
    tensors, took = dict(small.tensors), dict[str, str]()
    for layer in layers:
        if not layer.cut or not layer.inputs.numel():
            continue
        problem = problem_of(dense, layer, samples=0)
        channels = _channels(coupling, nodes[layer.operand], problem, made)
        took[layer.weight] = "nothing"
        if channels is not None:
            moments = _moments(problem, nodes[layer.operand], channels, _rectified(coupling, nodes[layer.operand]))
            if not channels.known:  # means of 0 are a guess: nothing for a constant
                problem = dataclasses.replace(problem, layer=dataclasses.replace(layer, constant=None))
            solution = solve_ridge(problem, moments, RIDGE)
            solution.store(tensors)
            _repair(coupling, nodes[layer.node], solution, moments, tensors)
            took[layer.weight] = "affine" if channels.known else "merged"
    return small.with_tensors(tensors), took


def _made(coupling: Coupling, node: fx.Node, layer: LinearLayer) -> _MadeChannels:
    stored = coupling.graph.tensors[layer.weight].detach()
    rows = layer.matrix(stored, layer.all_groups).flatten(0, 1).flatten(1).double().cpu()
    axis = coupling.labelled.values[node].axes[1 if layer.window else -1]
    component = np.zeros(len(rows), int) if axis is None else coupling.component[axis.numpy()]
    norm = norm_behind(node)
    mean, deviation = (torch.zeros(len(rows)), None) if norm is None else _normed(coupling, norm)
    return _MadeChannels(component, _of_length(rows, deviation), mean.double(), norm is not None)


def _normed(coupling: Coupling, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of what a BatchNorm gives: its shift, and the size of its scale."""
    given = arguments_of(norm)
    shift, scale = (coupling.labelled.constants.of(given[name]) if given[name] else None for name in ("bias", "weight"))
    size = len(coupling.labelled.constants.of(given["running_mean"]))  # type: ignore[arg-type]
    mean = torch.zeros(size) if shift is None else shift.detach().cpu()
    return mean, torch.ones(size) if scale is None else scale.detach().abs().cpu()


def _of_length(rows: Tensor, length: Tensor | None) -> Tensor:
    if length is None:
        return rows
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300) * length.double()[:, None]


def _channels(
    coupling: Coupling, operand: fx.Node, problem: RidgeProblem, made: list[_MadeChannels]
) -> _MadeChannels | None:
    """What makes each input of a layer: of a sum of several outputs, all of them; None where nothing is known."""
    layer = problem.layer
    value = coupling.labelled.values[operand]
    axis = value.axes[1 if layer.window else -1] if isinstance(value, Value) else None
    if axis is None:
        return None
    component = coupling.component[axis.numpy()].reshape(layer.all_groups, -1, problem.tied)[layer.groups][..., 0]
    components, vectors, mean, known = component.reshape(-1), [], torch.zeros(component.size).double(), True
    for one in made:
        names, first = np.unique(one.component, return_index=True)
        at = np.searchsorted(names, components).clip(max=len(names) - 1)
        here = torch.from_numpy((names[at] == components) & (components > 0))
        if here.any():
            rows = torch.from_numpy(first[at])
            vectors.append(torch.where(here[:, None], one.vector[rows], 0.0))
            mean, known = mean + torch.where(here, one.mean[rows], 0.0), known and one.known
    vector = torch.cat(vectors, 1) if vectors else torch.zeros(len(components), 1)
    for norm in filter(is_norm, _upstream(coupling, operand)):  # it stands between the sum and this reader
        mean, deviation = _normed(coupling, norm)
        vector, mean, known = _of_length(vector, deviation), mean.double(), True
        break
    return _MadeChannels(component, vector, mean, known) if bool((vector.norm(dim=1) > 0).any()) else None


def _upstream(coupling: Coupling, node: fx.Node) -> Iterator[fx.Node]:
    """``node`` and where its values come from, up to a layer or a sum of several values."""
    while node.op == "call_function":
        row = row_of(node.target)
        inputs = [n for n in node.all_input_nodes if coupling.labelled.constants.of(n) is None]
        if row is None or row.masks == "inputs" or len(inputs) != 1:
            return
        yield node
        node = inputs[0]


def _rectified(coupling: Coupling, operand: fx.Node) -> bool:
    """Behind a ReLU, or what is like one."""
    rows = [row_of(n.target) for n in _upstream(coupling, operand)]
    return any(row is not None and row.curve in ("rectifier", "leaky") for row in rows)


def _moments(problem: RidgeProblem, operand: fx.Node, channels: _MadeChannels, rectified: bool) -> InputMoments:
    """As if one row had been seen."""
    layer = problem.layer
    groups = len(layer.groups)
    mean, product = expected_products(channels.vector, channels.mean, rectified=rectified)
    width = len(mean) // groups
    blocks = torch.stack([product[i * width :, i * width :][:width, :width] for i in range(groups)])
    mean = mean.view(groups, width)
    known = channels.known and layer.constant is not None
    scatter = blocks - mean[:, :, None] * mean[:, None] if known else blocks
    flat = torch.zeros(layer.all_groups, width, dtype=torch.float64)
    flat[layer.groups] = mean
    average = flat.flatten().repeat_interleave(problem.tied)
    if layer.window is not None:
        average = average.view(-1, *[1] * (operand.meta["val"].dim() - 2)).expand(
            -1, *shape_of(operand.meta["val"])[2:]
        )
    rows = Covariances(1, (mean if known else 0 * mean,), (scatter,))
    return InputMoments(rows, Moments(1, (average,)))


def _repair(
    coupling: Coupling, node: fx.Node, solution: RidgeSolution, moments: InputMoments, tensors: dict[str, Tensor]
) -> None:
    """Divides the variance in the BatchNorm behind by the share that is lost."""
    norm = norm_behind(node)
    name = coupling.graph.owners.get(arguments_of(norm)["running_var"].name) if norm else None
    if name is None:
        return
    problem = solution.problem
    kept = problem.weights[:, :, problem.kept] + solution.added
    spread = moments.rows.scatter
    before = torch.einsum("goct,gcd,godt->go", problem.weights, spread, problem.weights).flatten()
    inner = spread[:, problem.kept][:, :, problem.kept]
    after = torch.einsum("goct,gcd,godt->go", kept, inner, kept).flatten()
    share = torch.where(before > 0, after / before.clamp(min=1e-300), 1.0).clamp(min=1e-3, max=1.0)
    tensors[name] = (tensors[name].detach().double() * share).to(tensors[name])
