"""Block-wise distillation: each block takes a few hundred gradient steps towards the dense block's output, no labels.

A block lies between two places where a single value passes: in a residual net from sum to sum, in a plain one a layer.
``full`` fits each layer alone; here some blocks in a row learn together all that they store, by Adam (Kingma, Ba 2015)
on the squared error at their end, from what the small graph gives at their start, blocks before them included (block
reconstruction: Li et al., BRECQ, ICLR 2021). Where the error on samples held out does not fall, values stay.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from slim_model.data.holdout import Parts
from slim_model.errors import first_line
from slim_model.graph.graph import Graph
from slim_model.progress import Progress, count_in_text, say_nothing
from slim_model.recovery.cut_points import CutPoint, find_cut_points, is_batch, sizes
from slim_model.recovery.linear_layers import LinearLayer, count_readers, stored_name_of
from slim_model.recovery.streamed_run import MEMORY, StreamedRun

BLOCKS_AT_ONCE = 3
"""Blocks that learn at once."""
STEPS, BATCH, RATE = 400, 64, 1e-3
LEAST = 4 * BATCH
"""Samples below which nothing is learned: it would be learned by heart."""
EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Block:
    """``nodes`` of the small graph from behind ``start`` to ``end``; ``trained``: what only they read."""

    start: str
    nodes: tuple[fx.Node, ...]
    trained: tuple[str, ...]
    end: CutPoint


def train_blocks(
    dense: Graph,
    small: Graph,
    layers: list[LinearLayer],
    fit: Parts,
    held_out: Parts,
    *,
    at_once: int = BLOCKS_AT_ONCE,
    steps: int = STEPS,
    progress: Progress = say_nothing,
) -> tuple[Graph, dict[str, str]]:
    """The small graph with what its blocks learned, and the error at the end of each before and after.

    ``at_once``: blocks in a row that learn together; ``steps``: of the optimizer, for each such row.
    """
    blocks, took, tensors = find_blocks(dense, small, layers, at_once), dict[str, str](), dict(small.tensors)
    half = MEMORY // 2  # each pair of tracks shares the memory
    tracks = [(StreamedRun(dense, part, half), StreamedRun(small, part, half)) for part in (fit, held_out)]
    for number, block in enumerate(blocks, 1):
        run, ours, unseen = (
            BlockRunner(small, block, tensors),
            *(pairs_of(block, big, little) for big, little in tracks),
        )
        took[block.end.name], changed = learned(
            run, ours, unseen, Course(steps, RATE), f"fitting blocks: {number} of {len(blocks)}", progress
        )
        tensors |= changed
        for _, little in tracks:
            little.replace(changed)
    return small.with_tensors(tensors), took


Pairs = tuple[Tensor, Tensor]
"""What comes in, and what should come out."""


def pairs_of(block: Block, dense: StreamedRun, small: StreamedRun) -> Pairs | None:
    """As many samples as fit into MEMORY; None where they differ in shape."""
    taken, targets, size = [], [], 0
    for big, little in zip(dense.after(block.end.name), small.after(block.start), strict=True):
        if size < MEMORY:
            taken.append(little.values[block.start].detach().clone())
            targets.append(block.end.target(big.values[block.end.name].detach()).clone())
            size += taken[-1].nbytes + targets[-1].nbytes
    if len({x.shape[1:] for x in taken}) != 1 or len({x.shape[1:] for x in targets}) != 1:
        return None
    return torch.cat(taken), torch.cat(targets)


Draw = Callable[[Tensor], Pairs]
"""Numbers of samples -> what comes in for them, and what should come out."""


@dataclass(frozen=True, slots=True)
class Course:
    """How long, and at which highest ``rate``, something learns; ``in_bf16``: in the precision of autocast."""

    steps: int
    rate: float
    in_bf16: bool = False


def learned(
    run: BlockRunner,
    fit: Pairs | None,
    held_out: Pairs | None,
    course: Course,
    stage: str,
    progress: Progress,
    draw: Draw | None = None,
) -> tuple[str, dict[str, Tensor]]:
    """What came of it, and the values that change. ``draw``: in place of samples as they are."""
    progress(stage)
    if fit is None or held_out is None:
        return "kept: samples are of several shapes, or none is held out", {}
    if len(fit[0]) < LEAST:
        return f"kept: {len(fit[0])} samples are too few", {}
    with torch.no_grad():
        given = run(fit[0][:1])
    if not given.is_floating_point() or given.shape[1:] != fit[1].shape[1:]:
        return "kept: channels lie on more than one axis", {}
    before = run.error(*held_out)
    if before == 0:
        return "kept: nothing is lost", {}
    spread = float((fit[1] - fit[1].mean(0)).square().mean()) or 1.0
    try:
        _train(run, draw or (lambda rows: (fit[0][rows], fit[1][rows])), len(fit[0]), spread, course, stage, progress)
    except RuntimeError as error:  # an operator without a derivative
        return f"kept: {first_line(error, at_most=120)}", {}
    changed = {name: value.detach() for name, value in run.values.items()}
    after = run.error(*held_out)
    errors = f"error {before:.3g} -> {after:.3g}"
    return (f"learned: {errors}", changed) if after < before else (f"kept: {errors}", {})


@torch.enable_grad()
def _train(
    run: BlockRunner, draw: Draw, samples: int, spread: float, course: Course, stage: str, progress: Progress
) -> None:
    optimizer = torch.optim.Adam([value.requires_grad_() for value in run.values.values()], course.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, course.steps)
    generator, count = torch.Generator().manual_seed(0), count_in_text(progress, stage, every_s=EVERY_S)
    for step in range(course.steps):
        x, wanted = draw(torch.randint(samples, (BATCH,), generator=generator))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=course.in_bf16):
            given = run(x)
        loss = (given.float() - wanted).square().mean() / spread
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        count(step + 1, course.steps)


class BlockRunner:
    """A block on its own, with ``values`` that may be trained."""

    def __init__(self, graph: Graph, block: Block, tensors: dict[str, Tensor]) -> None:
        self.block = block
        self.values = {name: tensors[name].detach().clone() for name in block.trained}
        self.interpreter = fx.Interpreter(graph.module)
        taken = {n for node in block.nodes for n in node.all_input_nodes} - set(block.nodes)
        known = tensors | self.values
        self.stored = {node: known[graph.owners[node.name]] for node in taken if node.name in graph.owners}
        self.sizes = sizes(graph)
        (self.start,) = taken - set(self.stored) - set(self.sizes)

    def __call__(self, x: Tensor) -> Tensor:
        env = self.interpreter.env = {self.start: x, **self.stored}
        for node in self.sizes:
            env[node] = len(x) if is_batch(node) else self.interpreter.run_node(node)
        for node in self.block.nodes:
            if node not in env:
                env[node] = self.interpreter.run_node(node)
        output: Tensor = env[self.block.end.node]
        return output

    @torch.no_grad()
    def error(self, taken: Tensor, targets: Tensor) -> float:
        """Squared, relative to the spread of the targets."""
        pairs = zip(taken.split(BATCH), targets.split(BATCH), strict=True)
        wrong = sum(float((self(x.clone()) - y).double().square().sum()) for x, y in pairs)
        return wrong / max(float((targets - targets.mean(0)).double().square().sum()), 1e-300)


# -- where blocks begin and end -------------------------------------------------------------------------------------


def find_blocks(
    dense: Graph, small: Graph, layers: Sequence[LinearLayer], at_once: int = BLOCKS_AT_ONCE
) -> list[Block]:
    """In the order of the graph. What lies behind the last place that compares with the dense graph is in none."""
    cut_points = find_cut_points(dense, small, layers)
    ends = cut_points[::at_once]
    if cut_points and ends[-1] is not cut_points[-1]:
        ends.append(cut_points[-1])
    nodes, used = list(small.nodes), count_readers(small)
    at = {node: i for i, node in enumerate(nodes)}
    silent = {name for layer in layers if layer.silent_in(small) for name in layer.names}
    blocks = []
    for start, end in itertools.pairwise(ends):
        inside = tuple(nodes[at[start.node] + 1 : at[end.node] + 1])
        read = dict.fromkeys(source for node in inside for source in node.all_input_nodes)
        times = Counter(source for node in inside for source in node.all_input_nodes)
        owned = filter(None, (stored_name_of(small, source, used, times[source]) for source in read))
        if trained := tuple(name for name in owned if name in small.parameter_names - silent):
            blocks.append(Block(start.name, inside, trained, end))
    return blocks
