"""The result of coupling: groups of channels that stay or go together, and what is pinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slim_model.graph.graph import Graph
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import Birth, Replay, Value


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a group's channels sit: ``channel[i]`` is the channel (index in the group) at position i of ``axis`` of
    ``parameter``, -1 where the position belongs to none of them. ``role``: ``makes`` the channels (a layer's output),
    ``reads`` them (its input), or ``holds`` something per channel (norm, bias)."""

    parameter: str
    axis: int
    channel: np.ndarray
    role: str


@dataclass(frozen=True, slots=True)
class Group:
    """Channels ranked together: one layer makes them first, and where its output is split, into the same piece.
    ``channels`` are component numbers."""

    name: str
    channels: np.ndarray
    slices: tuple[Slice, ...]
    where: str

    @property
    def width(self) -> int:
        return len(self.channels)

    @property
    def span(self) -> int:
        """Positions one channel takes in the widest layer that makes it (heads share a channel, say)."""
        made = [s for s in self.slices if s.role == "makes"] or list(self.slices)
        return max(int(np.bincount(s.channel[s.channel >= 0]).max()) for s in made)


@dataclass(frozen=True, slots=True)
class Pinned:
    """Channels of one layer that cannot go: the operator and source line that fix them, and why."""

    name: str
    channels: int
    op: str
    where: str
    why: str
    is_output: bool


@dataclass(frozen=True, slots=True)
class GroupIndex:
    """By component: the number of the ``group`` it is in, and its ``number`` within; -1 where it is in none."""

    group: np.ndarray
    number: np.ndarray


def index_groups(members: Sequence[Sequence[int] | np.ndarray], components: int) -> GroupIndex:
    """Number the components of each group: ``members[i]`` are those of group i, in their order."""
    index = GroupIndex(np.full(components, -1), np.full(components, -1))
    for i, channels in enumerate(members):
        index.group[channels], index.number[channels] = i, np.arange(len(channels))
    return index


@dataclass(frozen=True, slots=True)
class Coupling:
    """Which labels are one channel, and which channels are ranked together.

    ``component[label]`` is the number of the channel that a label belongs to; 0 is fixed. ``groups`` hold the channels
    that may go, ``pinned`` says by layer which may not, and why. ``unknown``: (operator, line) of nodes without a rule.
    ``protected``: labels that the user keeps.
    """

    graph: Graph
    labelled: Labelled
    component: np.ndarray
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    unknown: tuple[tuple[str, str], ...]
    protected: np.ndarray

    @property
    def components(self) -> int:
        """How many numbers ``component`` has, that of what is fixed included."""
        return int(self.component.max()) + 1

    def keep_all(self) -> np.ndarray:
        """The plan that removes nothing: bool ``(components,)``, all True; a new array at each call."""
        return np.ones(self.components, bool)

    def labels_left(self, keep: np.ndarray) -> np.ndarray:
        """bool by label, which positions stay with the channels ``keep`` (bool by component): those of these channels.
        Where a layer makes terms of each of its inputs, those of its inputs that stay."""
        left: np.ndarray = keep[self.component]
        for inputs, made, held in self.labelled.terms:
            stays = left[inputs.numpy()].repeat(len(made) // len(inputs))
            for axis in held:
                left[axis.numpy()] &= stays
        return left

    def channels_gone(self, birth: Birth, left: np.ndarray) -> np.ndarray:
        """Components of which no position of this axis is ``left`` (bool by position)."""
        here = self.component[birth.start : birth.start + birth.size]
        return np.setdiff1d(here[~left], here[left])

    def index(self) -> GroupIndex:
        """Where each component stands in ``groups``."""
        return index_groups([group.channels for group in self.groups], self.components)

    @property
    def free(self) -> int:
        """Channels of layers' outputs that may go."""
        return sum(g.width * g.span for g in self.groups if g.width > 1)

    @property
    def free_share(self) -> float:
        """Share of the channels that are free, leaving out those that are the model's own outputs."""
        single = sum(g.span for g in self.groups if g.width == 1)
        total = self.free + single + sum(p.channels for p in self.pinned if not p.is_output)
        return self.free / total if total else 0.0

    @property
    def batch_holds_channels(self) -> bool:
        """Some axis with channels is as long as the batch says (filters of their own for each sample, side by side):
        its labels hold for the example's batch only."""
        return any(
            axis is not None and _varies(size)
            for node, value in self.labelled.values.items()
            if isinstance(value, Value) and isinstance(node.meta.get("val"), Tensor)
            for axis, size in zip(
                value.axes, node.meta["val"].shape, strict=False
            )  # torch 2.11 notes an axis too many for the states of an LSTM
        )

    def births_of(self, owner: str) -> Sequence[Birth]:
        """Where labels of this stored tensor begin, for each of its axes; shared tensors have one set."""
        return self.labelled.births_of(owner)

    def born(self, keep: np.ndarray) -> Replay:
        """The kept channels along each axis where labels are born: what a walk over the small graph starts from.

        ``keep``: bool by label, as ``Cut.keep``.
        """
        axes = {}
        for birth in self.labelled.births:
            labels = np.arange(birth.start, birth.start + birth.size)
            axes[birth.owner, birth.axis] = self.component[labels[keep[labels]]]
        return Replay(_as_tensors(axes), self.labelled.choices, self.labelled.pinned_nodes)


def _varies(size: int | torch.SymInt) -> bool:
    if isinstance(size, int):
        return False
    expression = size.node.expr  # (12 * b) // b does not
    return len({expression.subs(dict.fromkeys(expression.free_symbols, b)) for b in (2, 3)}) > 1


def _as_tensors(axes: dict[tuple[str, int], np.ndarray]) -> dict[tuple[str, int], Tensor]:
    return {key: torch.from_numpy(np.ascontiguousarray(v.astype(np.int32))) for key, v in axes.items()}
