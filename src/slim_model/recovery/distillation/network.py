"""End-to-end distillation: all that the small graph stores learns together to give what the dense one gives, no labels.

Each block is near its target by then, and what is left adds up on the way to the end. There everything between the
input and the last cut point learns together, by Adam on the squared error at that point (feature mimicking: MiR, Wang
et al., ECCV 2022; PRACTISE, CVPR 2023). Pictures are varied at random as in fine-tuning, and the dense model is asked
about each as it then is, so that a few thousand of them go further. What does not lower the error on samples held out
is taken back.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from slim_model.data.augmentation import Transform, augmentation_of, choose_augmentations, fixed_seed
from slim_model.data.holdout import Parts
from slim_model.graph.graph import Graph
from slim_model.measuring.machine import has_bf16
from slim_model.progress import Progress, say_nothing
from slim_model.recovery.distillation.blocks import (
    BATCH,
    Block,
    BlockRunner,
    Course,
    Draw,
    Pairs,
    find_blocks,
    learned,
    pairs_of,
)
from slim_model.recovery.linear_layers import LinearLayer
from slim_model.recovery.streamed_run import MEMORY, StreamedRun

PASSES, RATE = 12, 3e-4
"""Times that each sample is seen, and the highest rate."""


def train_network(
    dense: Graph,
    small: Graph,
    layers: list[LinearLayer],
    fit: Parts,
    held_out: Parts,
    *,
    augment: str | Transform = "auto",
    passes: int = PASSES,
    progress: Progress = say_nothing,
) -> tuple[Graph, dict[str, str]]:
    """The small graph with what it learned, and the error at its last cut point before and after."""
    blocks = find_blocks(dense, small, layers, at_once=len(layers) + 1)
    if not blocks:
        return small, {}
    (block,) = blocks
    half = MEMORY // 2
    ours, unseen = (
        pairs_of(block, StreamedRun(dense, part, half), StreamedRun(small, part, half)) for part in (fit, held_out)
    )
    device = next(iter(small.tensors.values())).device
    course = Course(passes * (len(ours[0]) if ours else 0) // BATCH, RATE, has_bf16(device))
    draw = _varied(dense, block, ours, augment, course) if ours else None
    run = BlockRunner(small, block, small.tensors)
    with fixed_seed(0, device):  # the pictures are varied alike in every run
        took, changed = learned(run, ours, unseen, course, "fitting the whole network", progress, draw)
    return small.with_tensors(small.tensors | changed), {block.end.name: took}


def _varied(dense: Graph, block: Block, pairs: Pairs, augment: str | Transform, course: Course) -> Draw | None:
    """Samples as ``augment`` makes them, and what the dense graph gives for them; None where nothing varies them.

    Where pictures are mirrored, and the end is one row of scores, the dense graph is asked about both sides of each:
    the mean is right more often.
    """
    vary = augmentation_of(augment, dense.inputs)
    if vary is None:
        return None
    nodes = list(dense.nodes)
    start, end = (
        next(i for i, node in enumerate(nodes) if node.name == name) for name in (block.start, block.end.name)
    )
    same = Block(block.start, tuple(nodes[start + 1 : end + 1]), (), replace(block.end, node=nodes[end]))
    teacher = BlockRunner(dense, same, dense.tensors)
    mirrored = "flip" in choose_augmentations(augment, dense.inputs) and pairs[1].dim() == 2

    @torch.no_grad()
    def asked(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=course.in_bf16):
            return block.end.target(teacher(x.clone())).float()

    def draw(rows: Tensor) -> Pairs:
        x = torch.stack([vary(one) for one in pairs[0][rows]])
        return x, (asked(x) + asked(x.flip(-1))) / 2 if mirrored else asked(x)

    return draw
