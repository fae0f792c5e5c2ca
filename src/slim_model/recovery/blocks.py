"""blocks: block after block learns, for a moment and without labels, to give what the dense block gives.

A block lies between two places where a single value passes: in a residual net from sum to sum, in a plain one a layer.
``full`` fits each layer alone; here some blocks in a row learn together all that they store, by Adam (Kingma, Ba 2015)
on the squared error at their end, from what the small graph gives at their start, blocks before them included (block
reconstruction: Li et al., BRECQ, ICLR 2021). Where the error on samples held out does not fall, values stay.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from slim_model.labels import shape_of
from slim_model.ops import flow_of, norm, pointwise
from slim_model.recovery.parts import Parts
from slim_model.recovery.sums import Sum, own, readers
from slim_model.recovery.track import MEMORY, Track
from slim_model.trace import Graph

aten = torch.ops.aten
TOGETHER = 3
"""Blocks that learn at once."""
STEPS, BATCH, RATE = 400, 64, 1e-3
_LEAST = 4 * BATCH
"""Samples below which nothing is learned: it would be learned by heart."""
_EVERY_S = 10.0
_POOLS = (aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.max_pool1d, aten.avg_pool1d)
Said = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Block:
    """``nodes`` of the small graph from behind ``start`` to ``end``; ``trained``: what only they read; ``left``: the
    axis of the dense ``end`` on which channels lie, and the positions left of it."""

    start: str
    nodes: tuple[fx.Node, ...]
    trained: tuple[str, ...]
    left: tuple[int, Tensor]

    @property
    def end(self) -> str:
        return self.nodes[-1].name

    def wanted(self, dense: Tensor) -> Tensor:
        axis, positions = self.left
        return dense.index_select(axis, positions.to(dense.device))


def refit(
    dense: Graph, small: Graph, layers: list[Sum], fit: Parts, held: Parts, said: Said = lambda text: None
) -> tuple[Graph, dict[str, str]]:
    """The small graph with what its blocks learned, and the error at the end of each before and after."""
    blocks, took, tensors = find_blocks(dense, small, layers), dict[str, str](), dict(small.tensors)
    tracks = [(Track(dense, part, MEMORY // 2), Track(small, part, MEMORY // 2)) for part in (fit, held)]
    for number, block in enumerate(blocks, 1):
        run, ours, unseen = _Runner(small, block, tensors), *(_samples(block, big, little) for big, little in tracks)
        took[block.end], changed = _learned(run, ours, unseen, f"fitting blocks: {number} of {len(blocks)}", said)
        tensors |= changed
        for _, little in tracks:
            little.replace(changed)
    return small.with_tensors(tensors), took


Samples = tuple[Tensor, Tensor]
"""What comes in, and what should come out."""


def _samples(block: Block, dense: Track, small: Track) -> Samples | None:
    """As many samples as fit into MEMORY; None where they differ in shape."""
    taken, wanted, size = [], [], 0
    for big, little in zip(dense.after(block.end), small.after(block.start), strict=True):
        if size < MEMORY:
            taken.append(little.values[block.start].detach().clone())
            wanted.append(block.wanted(big.values[block.end].detach()).clone())
            size += taken[-1].nbytes + wanted[-1].nbytes
    if len({x.shape[1:] for x in taken}) != 1 or len({x.shape[1:] for x in wanted}) != 1:
        return None
    return torch.cat(taken), torch.cat(wanted)


def _learned(
    run: _Runner, fit: Samples | None, held: Samples | None, stage: str, said: Said
) -> tuple[str, dict[str, Tensor]]:
    """What came of it, and the values that change."""
    said(stage)
    if fit is None or held is None:
        return "kept: samples are of several shapes, or none is held out", {}
    if len(fit[0]) < _LEAST:
        return f"kept: {len(fit[0])} samples are too few", {}
    with torch.no_grad():
        given = run(fit[0][:1])
    if not given.is_floating_point() or given.shape[1:] != fit[1].shape[1:]:
        return "kept: channels lie on more than one axis", {}
    before = run.error(*held)
    if before == 0:
        return "kept: nothing is lost", {}
    try:
        _train(run, *fit, stage, said)
    except RuntimeError as error:  # an operator without a derivative
        return f"kept: {str(error).splitlines()[0][:120]}", {}
    changed = {name: value.detach() for name, value in run.values.items()}
    after = run.error(*held)
    found = f"error {before:.3g} -> {after:.3g}"
    return (f"learned: {found}", changed) if after < before else (f"kept: {found}", {})


@torch.enable_grad()
def _train(run: _Runner, taken: Tensor, wanted: Tensor, stage: str, said: Said) -> None:
    spread = float((wanted - wanted.mean(0)).square().mean()) or 1.0
    optimizer = torch.optim.Adam([value.requires_grad_() for value in run.values.values()], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator, told = torch.Generator().manual_seed(0), time.perf_counter()
    for step in range(STEPS):
        chosen = torch.randint(len(taken), (BATCH,), generator=generator).to(taken.device)
        loss = (run(taken[chosen]) - wanted[chosen]).square().mean() / spread
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.perf_counter() - told > _EVERY_S:
            told = time.perf_counter()
            said(f"{stage}, step {step + 1} of {STEPS}")


class _Runner:
    """A block on its own, with ``values`` that may be trained."""

    def __init__(self, graph: Graph, block: Block, tensors: dict[str, Tensor]) -> None:
        self.block = block
        self.values = {name: tensors[name].detach().clone() for name in block.trained}
        self.interpreter = fx.Interpreter(graph.module)
        taken = {n for node in block.nodes for n in node.all_input_nodes} - set(block.nodes)
        known = tensors | self.values
        self.stored = {node: known[graph.owners[node.name]] for node in taken if node.name in graph.owners}
        self.sizes = _sizes(graph)
        (self.start,) = taken - set(self.stored) - set(self.sizes)

    def __call__(self, x: Tensor) -> Tensor:
        env = self.interpreter.env = {self.start: x, **self.stored}
        for node in self.sizes:
            env[node] = len(x) if _is_batch(node) else self.interpreter.run_node(node)
        for node in self.block.nodes:
            if node not in env:
                env[node] = self.interpreter.run_node(node)
        found: Tensor = env[self.block.nodes[-1]]
        return found

    @torch.no_grad()
    def error(self, taken: Tensor, wanted: Tensor) -> float:
        """Squared, relative to the spread of what is wanted."""
        pairs = zip(taken.split(BATCH), wanted.split(BATCH), strict=True)
        wrong = sum(float((self(x.clone()) - y).double().square().sum()) for x, y in pairs)
        return wrong / max(float((wanted - wanted.mean(0)).double().square().sum()), 1e-300)


# -- where a single value passes ------------------------------------------------------------------------------------


def find_blocks(dense: Graph, small: Graph, layers: Sequence[Sum]) -> list[Block]:
    """In the order of the graph. What lies behind the last place that compares with the dense graph is in none."""
    if not small.dynamic_batch:
        return []
    nodes, left = list(small.nodes), _left(dense, layers)
    passes = [at for at in _passes(small) if nodes[at].op == "placeholder" or nodes[at].name in left]
    names = {layer.node for layer in layers}
    summed = list(itertools.accumulate(node.name in names for node in nodes))
    last = {summed[at]: at for at in passes}  # of the places between two layers the last one
    ends = [*last.values()][::TOGETHER]
    if last and ends[-1] != max(passes):
        ends.append(max(passes))
    used = readers(small)
    found = []
    for start, end in itertools.pairwise(ends):
        inside = tuple(nodes[start + 1 : end + 1])
        read = dict.fromkeys(source for node in inside for source in node.all_input_nodes)
        owned = filter(None, (own(small, source, used) for source in read))
        if trained := tuple(name for name in owned if name in small.parameter_names):
            found.append(Block(nodes[start].name, inside, trained, left[nodes[end].name]))
    return found


def _passes(graph: Graph) -> Iterator[int]:
    """Positions behind which nothing but that one value is needed any more, one row a sample."""
    nodes = list(graph.nodes)
    last = {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    samples = next((shape_of(x)[0] for x in graph.inputs if isinstance(x, Tensor) and x.dim()), 0)
    sizes = set(_sizes(graph))
    alive = {node for node in nodes if node.op == "placeholder" and node.name not in graph.owners}
    for i, node in enumerate(nodes[:-1]):
        if node.op != "placeholder" and node not in sizes:
            alive.add(node)
        alive -= {source for source in (*node.all_input_nodes, node) if last.get(source, -1) <= i}
        value = node.meta.get("val")
        if alive == {node} and isinstance(value, Tensor) and value.dim() > 1 and shape_of(value)[0] == samples:
            yield i


def _sizes(graph: Graph) -> list[fx.Node]:
    """Numbers that follow from how many samples there are."""
    found = dict[fx.Node, None]()
    for node in graph.nodes:
        number = node.op == "call_function" and not isinstance(node.meta.get("val"), Tensor)
        if _is_batch(node) or (number and node.all_input_nodes and all(n in found for n in node.all_input_nodes)):
            found[node] = None
    return list(found)


def _is_batch(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int and bool(node.args[1] == 0)


def _left(dense: Graph, layers: Sequence[Sum]) -> dict[str, tuple[int, Tensor]]:
    """By the names of nodes whose channels are those of a layer: the axis they lie on, and the positions left of it."""
    by_name = {layer.node: layer for layer in layers}
    found: dict[fx.Node, tuple[int, Tensor]] = {}
    for node in dense.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or not value.dim():
            continue
        shape = shape_of(value)
        if layer := by_name.get(node.name):
            found[node] = (1 if layer.window else len(shape) - 1, layer.outputs)
        elif any(user.op == "output" for user in node.users):
            found[node] = (len(shape) - 1, torch.arange(shape[-1]))
        else:
            taken = [source for source in node.all_input_nodes if source in found]
            alike = (found[s] for s in taken if _carries(node, found[s][0], shape_of(s.meta["val"]), shape))
            if place := next(alike, None):
                found[node] = place
    return {node.name: place for node, place in found.items()}


def _carries(node: fx.Node, axis: int, taken: tuple[int, ...], given: tuple[int, ...]) -> bool:
    """The channels of what is taken in lie on the same axis of what is given."""
    if len(taken) != len(given) or taken[axis] != given[axis]:
        return False
    pools = getattr(node.target, "overloadpacket", None) in _POOLS and axis == 1
    return pools or flow_of(node) in (pointwise.pointwise, norm.batch_norm, norm.layer_norm)
