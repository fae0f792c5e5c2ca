"""criteria: how much each channel of a group matters. One function a criterion, one row in ``CRITERIA``.

A criterion gets ``Slices`` and returns one score per channel, higher = keep. It never sees operators or layer types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.couple import Coupling, Group
from slim_model.errors import InputError


@dataclass(frozen=True, slots=True)
class Slices:
    """Everything a criterion may know of one group of ``width`` channels.

    ``makes``, ``reads``, ``holds``: tensors ``(channel, rest)``, float32: rows of the weights that make the channels,
    columns of those that read them, and per-channel values of norms and biases. Positions a channel does not have
    are zero. ``generator`` is seeded for the group.
    """

    width: int
    makes: tuple[Tensor, ...]
    reads: tuple[Tensor, ...]
    holds: tuple[Tensor, ...]
    generator: torch.Generator


Criterion = Callable[[Slices], Tensor]


def l1(slices: Slices) -> Tensor:
    """Sum of absolute weights of the filters that make a channel.

    Li, Kadav, Durdanovic, Samet, Graf, Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1:
    ``s_o = sum |W[o]|``. Members of a coupled group are summed. ``W = [[1, -2], [0, 1]]`` scores ``[3, 1]``.
    """
    return _sum(slices, [w.abs().sum(1) for w in slices.makes])


def l2(slices: Slices) -> Tensor:
    """Euclidean norm of the filters that make a channel, all members taken as one vector.

    Li 2017 (as l1): ``s_o = sqrt(sum W[o]^2)``. ``W = [[3, -4], [0, 1]]`` scores ``[5, 1]``.
    """
    return _sum(slices, [w.square().sum(1) for w in slices.makes]).sqrt()


def random(slices: Slices) -> Tensor:
    """Uniform noise from the seed: the baseline every criterion has to beat (Mittal et al., WACV 2018)."""
    return torch.rand(slices.width, generator=slices.generator)


def _sum(slices: Slices, scores: list[Tensor]) -> Tensor:
    return torch.stack([*scores, torch.zeros(slices.width)]).sum(0)


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}


def score(coupling: Coupling, criterion: str | Criterion, *, seed: int = 0) -> list[Tensor]:
    """One float32 tensor ``(width,)`` per group, higher = keep."""
    rank = CRITERIA.get(criterion) if isinstance(criterion, str) else criterion
    if rank is None:
        raise InputError(f"no criterion is called '{criterion}'. There are: {', '.join(CRITERIA)}.")
    scores = []
    for number, group in enumerate(coupling.groups):
        result = rank(slices_of(coupling, group, seed + number))
        if result.shape != (group.width,):
            raise InputError(
                f"the criterion returned {tuple(result.shape)} for '{group.name}'; it must return one score "
                f"for each of its {group.width} channels."
            )
        if not torch.isfinite(result).all():
            raise InputError(f"the criterion gave NaN or infinity for '{group.name}'. Check the model's weights.")
        scores.append(result.detach().float().cpu())
    return scores


def slices_of(coupling: Coupling, group: Group, seed: int) -> Slices:
    rows: dict[str, list[Tensor]] = {"makes": [], "reads": [], "holds": []}
    for part in group.slices:
        tensor = coupling.graph.tensors[part.parameter]
        if tensor.is_floating_point():
            rows[part.role].append(_by_channel(tensor, part.axis, torch.from_numpy(part.channel), group.width))
    generator = torch.Generator().manual_seed(seed)
    return Slices(group.width, tuple(rows["makes"]), tuple(rows["reads"]), tuple(rows["holds"]), generator)


def _by_channel(tensor: Tensor, axis: int, channel: Tensor, width: int) -> Tensor:
    """``(channel, rest)``; a channel with several positions has them side by side, missing ones are zero."""
    positions = torch.nonzero(channel >= 0).flatten()
    owner = channel[positions]
    order = torch.argsort(owner, stable=True)
    positions, owner = positions[order], owner[order]
    counts = torch.bincount(owner, minlength=width)
    rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    rows = tensor.detach().movedim(axis, 0).flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
    if bool((counts == 1).all()):
        return rows[positions].float().cpu()
    result = rows.new_zeros((width, int(counts.max()), rows.shape[1]), dtype=torch.float32)
    result[owner, rank] = rows[positions].float()
    return result.flatten(1).cpu()
