"""A graph -> the channels that stand or fall together, and what is pinned, by whom and why."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from types import MappingProxyType

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import fx

from slim_model.coupling.coupling import Coupling, Group, Slice, index_groups
from slim_model.coupling.layer_names import layer_name, roles_of
from slim_model.coupling.pin_reasons import find_pinned_layers
from slim_model.errors import InputError, ensure
from slim_model.graph.graph import Graph, source_line
from slim_model.labels.label import label
from slim_model.labels.labelled import Labelled, Tie
from slim_model.labels.values import FIXED, Birth
from slim_model.labels.walk import Walk
from slim_model.ops import flow_of

_COUNTS = re.compile(r"channels_(places_)?\d+_*")
"""Names of what ``dense_counts`` and ``dense_places`` store."""


def couple(
    graph: Graph,
    *,
    keep: tuple[str, ...] = (),
    pinned_nodes: Mapping[str, str] = MappingProxyType({}),
    apart: Mapping[str, Collection[int]] = MappingProxyType({}),
    equal_pieces: bool = False,
) -> Coupling:
    """Label ``graph``, join tied labels into channels, and group channels by the layer that makes them.

    ``keep``: glob patterns of parameter or module names whose channels are not touched. ``pinned_nodes``: names of
    nodes where an earlier attempt failed to cut, and how. ``apart``: for views that split a channel axis, by name, the
    axes of which one keeps channels apart (see ``coupling.attention_heads``). ``equal_pieces``: what is split into
    pieces of one size loses the same positions of each. Raises InputError where a pattern matches nothing.

    Of a grouped layer with many small groups whole groups go. Where one of its sides turns out to be fixed, none could:
    then labels are given again with the same positions of every group going, and are taken if that frees more.
    """
    labelled = _tied(label(Walk(graph, pinned_nodes=pinned_nodes, apart=apart), flow_of), equal_pieces)
    roles, protected, component = _join(labelled, keep)
    if stuck := {node.name for labels, node in labelled.whole_blocks if not component[labels.numpy()].any()}:
        blocks = Walk(graph, pinned_nodes=pinned_nodes, apart=apart, in_blocks=stuck)
        other = _tied(label(blocks, flow_of), equal_pieces)
        joined = _join(other, keep)
        if _channels_left(other, joined[2]) > _channels_left(labelled, component):
            labelled, (roles, protected, component) = other, joined
    groups = _groups(labelled, component, roles)
    unknown = tuple((str(n.target), source_line(n)) for n in labelled.unknown)
    pinned = find_pinned_layers(labelled, component, protected)
    coupling = Coupling(graph, labelled, component, groups, pinned, unknown, protected)
    _check(coupling)
    return coupling


def _tied(labelled: Labelled, equal_pieces: bool) -> Labelled:
    """Only stored tensors make channels; where that is asked for, the same positions of pieces of one size are one."""
    labelled = _without_copies(labelled)
    if not equal_pieces:
        return labelled
    ties = [
        Tie(one, other, node)
        for pieces, node in labelled.pieces
        for one, other in itertools.pairwise(sorted((p for p in pieces if p is not None), key=len))
        if len(one) == len(other)
    ]
    return dataclasses.replace(labelled, ties=(*labelled.ties, *ties))


def _without_copies(labelled: Labelled) -> Labelled:
    """A product has an axis that one of its operands got by repeating: no stored tensor has its positions, so that none
    of them is a channel. What sums over them counts each."""
    component = find_components(labelled, [])
    held = _held(labelled, component)
    return dataclasses.replace(labelled, made=tuple(m for m in labelled.made if held[m[0].numpy()].any()))


def _held(labelled: Labelled, component: np.ndarray) -> np.ndarray:
    """By label: whether some tensor that the model stores has a position of its component."""
    held = np.zeros(int(component.max(initial=0)) + 1, bool)
    for birth in labelled.births:
        if not birth.owner.startswith("@") and not _COUNTS.fullmatch(birth.owner):
            held[component[birth.start : birth.start + birth.size]] = True
    return held[component]


def _check(coupling: Coupling) -> None:
    """What is pinned is fixed; a channel is in one group, and is not fixed; slices are as long as what they cut."""
    component, channels = coupling.component, [group.channels for group in coupling.groups]
    pinned = [component[FIXED : FIXED + 1], component[coupling.protected]]
    pinned += [component[pin.labels.numpy()] for pin in coupling.labelled.pins]
    ensure(not any(part.any() for part in pinned), "couple", "what is pinned may go")
    grouped = np.concatenate([*channels, np.zeros(0, np.int64)])
    ensure(FIXED not in grouped, "couple", "a group holds what is fixed")
    ensure(len(np.unique(grouped)) == len(grouped), "couple", "a channel is in two groups")
    for group in coupling.groups:
        for part in group.slices:
            where = f"axis {part.axis} of '{part.parameter}'"
            size = coupling.graph.tensors[part.parameter].shape[part.axis]
            ensure(len(part.channel) == size, "couple", f"{where} has {size} positions, not {len(part.channel)}")
            ensure(part.channel.max(initial=-1) < group.width, "couple", f"{where} has channels of no group")


def _join(labelled: Labelled, keep: tuple[str, ...]) -> tuple[dict[tuple[str, int], str], np.ndarray, np.ndarray]:
    """Roles of parameters, labels that the user keeps, and the component of each label."""
    roles = roles_of(labelled)
    protected = _find_protected(labelled, keep, roles)
    component = find_components(labelled, [pin.labels.numpy() for pin in labelled.pins] + [protected])
    return roles, protected, np.where(_held(labelled, component), component, FIXED)


def _channels_left(labelled: Labelled, component: np.ndarray) -> int:
    """How many labels of layers' outputs are not fixed."""
    return sum(int(np.count_nonzero(component[axis.numpy()])) for axis, _ in labelled.made)


def find_components(labelled: Labelled, fixed: list[np.ndarray]) -> np.ndarray:
    """By label: the number of the component its ties put it in. That of ``FIXED``, which all ``fixed`` join, is 0."""
    size = labelled.labels
    left = [a.numpy() for a, _, _ in labelled.ties] + [np.zeros(0, np.int32)]
    right = [b.numpy() for _, b, _ in labelled.ties] + [np.zeros(0, np.int32)]
    rows = np.concatenate(left + fixed)
    columns = np.concatenate([*right, np.zeros(sum(map(len, fixed)), np.int32)])
    matrix = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    _, component = connected_components(matrix, directed=False)
    zero = component[FIXED]
    return np.where(component == zero, 0, np.where(component == 0, zero, component)).astype(np.int32)


def _find_protected(labelled: Labelled, patterns: tuple[str, ...], roles: dict[tuple[str, int], str]) -> np.ndarray:
    """Labels of the channels that layers or parameters matching ``patterns`` make (or hold)."""
    chosen = [np.zeros(0, np.int32)]
    stored = [birth for birth in labelled.births if not birth.owner.startswith("@")]
    for pattern in patterns:
        matching = [b for b in stored if fnmatch(b.owner, pattern) or fnmatch(b.owner.rpartition(".")[0], pattern)]
        if not matching:
            raise InputError(f"--keep '{pattern}' matches no layer of this model. {_hint(pattern, stored)}")
        for birth in matching:
            if roles.get((birth.owner, birth.axis), "holds") != "reads":
                chosen.append(np.arange(birth.start, birth.start + birth.size, dtype=np.int32))
    return np.concatenate(chosen)


def _hint(pattern: str, stored: list[Birth]) -> str:
    """What could have been meant: the layers inside a module of that name, or names that are like it."""
    inside = sorted({b.owner.rpartition(".")[0] for b in stored if fnmatch(b.owner, f"{pattern}.*")})
    if inside:
        return f"It is a module that holds layers: --keep '{pattern}.*' keeps them ({_some(inside)})."
    names = list(dict.fromkeys(b.owner.rpartition(".")[0] or b.owner for b in stored))
    like = difflib.get_close_matches(pattern, names, n=3)
    return f"Did you mean {' or '.join(like)}?" if like else f"Its layers are named {_some(names)}."


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _groups(labelled: Labelled, component: np.ndarray, roles: dict[tuple[str, int], str]) -> tuple[Group, ...]:
    """Channels by the layer that makes them first, in the order in which layers run."""
    # A channel is ranked beside those that the same layer makes: only their scores can be compared.
    channels_of: dict[Maker, list[int]] = {}
    for channel, maker in _makers(labelled, component).items():
        if channel != FIXED:
            channels_of.setdefault(maker, []).append(channel)
    index = index_groups(list(channels_of.values()), int(component.max()) + 1)

    # Every axis of a stored tensor is looked at once: it may hold channels of several groups (a concatenation).
    slices: list[list[Slice]] = [[] for _ in channels_of]
    for birth in labelled.births:
        if birth.owner.startswith("@"):  # padding and the like: there is no tensor to slice
            continue
        channels = component[birth.start : birth.start + birth.size]
        role = roles.get((birth.owner, birth.axis), "holds")
        for group in np.unique(index.group[channels]).tolist():
            if group >= 0:  # -1: fixed, or made by no layer
                numbers = np.where(index.group[channels] == group, index.number[channels], -1)
                slices[group].append(Slice(birth.owner, birth.axis, numbers, role))

    return tuple(
        Group(layer_name(labelled, node), np.array(channels), tuple(slices[number]), source_line(node))
        for number, ((node, _), channels) in enumerate(channels_of.items())
    )


Maker = tuple[fx.Node, tuple[int, ...]]
"""A layer, and the pieces of its output in which a channel sits."""


def _makers(labelled: Labelled, component: np.ndarray) -> dict[int, Maker]:
    """Of each channel: the layer that makes it first. Another piece of the same output is another maker."""
    makers: dict[int, Maker] = {}
    piece = _pieces(labelled)
    for axis, node in labelled.made:
        labels = axis.numpy()
        pieces_of: dict[int, list[int]] = {}
        for channel, number in np.unique(np.stack([component[labels], piece[labels]]), axis=1).T.tolist():
            pieces_of.setdefault(channel, []).append(number)
        for channel, numbers in pieces_of.items():
            makers.setdefault(channel, (node, tuple(numbers)))
    return makers


def _pieces(labelled: Labelled) -> np.ndarray:
    """By label: the number of the piece it is in where it is split first; 0 where it is not."""
    piece = np.zeros(labelled.labels, np.int32)
    number = 0
    for pieces in labelled.pieces:
        for axis in pieces.labels:
            number += 1
            labels = axis.numpy() if axis is not None else np.zeros(0, np.int32)
            piece[labels[piece[labels] == 0]] = number
    return piece
