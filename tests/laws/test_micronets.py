"""Laws over every micro-net: masked = slim, permuted = same, dead channels cost nothing, pins have reasons.

The oracle is written without the prover: it zeroes columns in a copy of the user's own module.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from micronets import NETS
from micronets.compiled import BATCH, OTHER_BATCH, compiled, coupling_of, graph_of, model_of
from micronets.oracle import TOLERANCE, assert_same, masked_module, outputs_of
from slim_model.cost.counted import cost
from slim_model.coupling.coupling import Coupling, Group
from slim_model.cutting.shrink_graph import shrink
from slim_model.errors import BudgetError
from slim_model.labels.values import tensors_in
from slim_model.proof.own_module import make_small_module

RUNS = [(0.25, 0), (0.5, 1), (0.7, 0)]
"""(ratio, seed): few, half and most channels go, and which ones is drawn. scripts/fuzz draws more."""


def rows(*, pruned: bool = False, oracle: bool = False) -> list[Any]:
    """Names of nets: all, those that have free channels, those that the oracle covers."""
    return [
        pytest.param(name)
        for name, row in NETS.items()
        if (row.free > 0 or not (pruned or oracle)) and (row.zeroed or not oracle)
    ]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The nets are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the laws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rows())
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    graph = graph_of(name)
    for batch in (BATCH, OTHER_BATCH) if graph.dynamic_batch else (BATCH,):
        inputs = NETS[name].inputs(batch)
        assert_same(outputs_of(model_of(name), inputs), graph.run(tuple(pytree.tree_leaves(inputs))), "graph")


@pytest.mark.parametrize("name", rows())
def test_a_free_batch_stays_free(name: str) -> None:
    """What is written otherwise is traced again on values whose sizes are open, which some operators would fix; so
    would constants that are computed with such a size."""
    graph = graph_of(name)
    cost(coupling_of(name))
    sizes = {
        str(node.meta["val"].shape[0])
        for node in graph.nodes
        if node.op == "placeholder" and node.name not in graph.owners and isinstance(node.meta["val"], Tensor)
    }
    assert not graph.dynamic_batch or not all(size.isdigit() for size in sizes)


@pytest.mark.parametrize("name", rows(pruned=True))
@pytest.mark.parametrize(("ratio", "seed"), RUNS)
def test_slim_equals_masked(name: str, ratio: float, seed: int) -> None:
    """By the prover, and by an oracle that knows nothing of it."""
    before = {k: v.clone() for k, v in model_of(name).state_dict().items()}
    result = compiled(name, ratio, seed)
    assert result.proof.masked_max_rel_error <= TOLERANCE
    assert result.proof.ties > 0
    others = result.dense.dynamic_batch and not result.coupling.batch_holds_channels
    assert set(result.proof.batches) == ({2, 1} if others else {2})
    module, *_ = make_small_module(model_of(name), result.small)
    assert count(module) < count(model_of(name))
    assert all(torch.equal(v, before[k]) for k, v in model_of(name).state_dict().items())
    if NETS[name].zeroed:
        oracle = masked_module(model_of(name), NETS[name], result)
        for batch in (BATCH, OTHER_BATCH) if result.dense.dynamic_batch else (BATCH,):
            inputs = NETS[name].inputs(batch)
            assert_same(outputs_of(oracle, inputs), outputs_of(module, inputs), f"batch {batch}")


@pytest.mark.parametrize("name", [row for row in rows(pruned=True) if not NETS[row.values[0]].ordered])
def test_permuting_coupled_channels_changes_nothing(name: str) -> None:
    coupling, graph = coupling_of(name), graph_of(name)
    expected = graph.run(graph.inputs)
    for group in coupling.groups:
        order = _permutation(coupling, group)
        permuted = graph.with_tensors(_permuted(coupling, group, order)).run(graph.inputs)
        assert_same(expected, permuted, f"group {group.name}")


@pytest.mark.parametrize("name", rows(oracle=True))
def test_dead_channels_cost_nothing(name: str) -> None:
    """Where the columns that read some channels are zero, removing these channels leaves the dense output as it is."""
    found = compiled(name, 0.7, 0)
    dead = masked_module(model_of(name), NETS[name], found)
    state = dict(dead.named_parameters(remove_duplicate=False)) | dict(dead.named_buffers(remove_duplicate=False))
    graph = found.dense
    graph = graph.with_tensors({k: state[k].detach() if k in state else v for k, v in graph.tensors.items()})
    small, _ = shrink(dataclasses.replace(found.coupling, graph=graph), found.plan.keep)
    inputs = NETS[name].inputs(BATCH)
    assert_same(outputs_of(dead, inputs), small.run(tuple(pytree.tree_leaves(inputs))), "dead channels removed")


@pytest.mark.parametrize("name", rows())
def test_what_is_not_pinned_is_free(name: str) -> None:
    row = NETS[name]
    couplings = [coupling_of(name)]
    if row.free > 0:
        couplings += [compiled(name, ratio, seed).coupling for ratio, seed in RUNS]
    else:
        with pytest.raises(BudgetError):
            compiled(name, 0.5, 0)
    for coupling in couplings:
        assert coupling.free_share >= row.free
        for pin in coupling.pinned:
            assert pin.why
            assert pin.is_output or pin.where.startswith(f"{file_of(name)}:"), pin
    assert not row.pinned or any(row.pinned in pin.op for pin in couplings[0].pinned)


@pytest.mark.parametrize("name", ["custom_op", "histogram", "fourier", "matrix_exponential"])
def test_an_unknown_operator_is_named_with_its_line(name: str) -> None:
    lines, start = inspect.getsourcelines(NETS[name].forward)
    line = start + next(i for i, text in enumerate(lines) if "without a row" in text)
    unknown = coupling_of(name).unknown
    assert any(
        NETS[name].pinned in op and where.startswith(f"{file_of(name)}:{line} in forward") for op, where in unknown
    )


def file_of(name: str) -> str:
    return Path(inspect.getsourcefile(NETS[name].forward)).name


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())


# -- permutations ---------------------------------------------------------------------------------------------------


def _permutation(coupling: Coupling, group: Group) -> np.ndarray:
    """Shuffles the channels among those that sit alike in every value: in an uneven split they do not all."""
    kinds: dict[bytes, list[int]] = {}
    for channel, kind in enumerate(_kinds(coupling, group)):
        kinds.setdefault(kind.tobytes(), []).append(channel)
    order = np.arange(group.width)
    for members in kinds.values():
        order[members] = np.roll(members, 1)
    return order


def _kinds(coupling: Coupling, group: Group) -> np.ndarray:
    """How often each channel of the group sits on each axis of each value: (channel, axis of value)."""
    counts = [
        np.bincount(coupling.component[axis.numpy()], minlength=coupling.components)[group.channels]
        for value in tensors_in(coupling.labelled.values.values())
        for axis in value.axes
        if axis is not None
    ]
    return np.stack(counts, axis=1)


def _permuted(coupling: Coupling, group: Group, order: np.ndarray) -> dict[str, Tensor]:
    tensors = dict(coupling.graph.tensors)
    for part in group.slices:
        source = np.arange(len(part.channel))
        for channel in range(group.width):
            source[part.channel == channel] = np.flatnonzero(part.channel == order[channel])
        tensors[part.parameter] = tensors[part.parameter].index_select(part.axis, torch.from_numpy(source))
    return {k: tensors[coupling.labelled.shared.get(k, k)] for k in tensors}
