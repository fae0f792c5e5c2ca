"""The residual stream: which hidden channels stay, and new weights for the layers that read them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slim_model.folders.choose import best
from slim_model.folders.reading.checkpoint import Checkpoint
from slim_model.folders.refit import refit, rescale
from slim_model.folders.running import Point, Visit, module_at
from slim_model.folders.widths.hidden import Hidden, Norm
from slim_model.ranking.criteria import Ranking, ranking_of
from slim_model.ranking.criteria.slices import LazyTensors, Slices
from slim_model.ranking.evidence.gather import GroupEvidence, View
from slim_model.ranking.evidence.moments import Covariances, Variances
from slim_model.ranking.score import checked_scores


def hidden_by_weights(checkpoint: Checkpoint, hidden: Hidden, count: int, ranking: Ranking, seed: int) -> Tensor:
    """The ``count`` channels to keep, ascending, by the weights of all layers that make them."""
    makes = [partial(_rows, checkpoint, axis.tensor, axis.axis) for axis in hidden.makes]
    return best(_scores(hidden, ranking, seed, makes=makes), count)


def hidden_by_data(
    checkpoint: Checkpoint, hidden: Hidden, count: int, ranking: Ranking, seed: int, seen: Mapping[Norm, Variances]
) -> Tensor:
    """The same by what the layers behind the norms have ``seen``. Each norm's scores are taken relative to their sum,
    since what matters is how much of what a layer gives is lost. A criterion that needs pairs is ``power`` here: the
    pairs of all norms together would not fit in memory."""
    if not ranking.statistics:
        return hidden_by_weights(checkpoint, hidden, count, ranking, seed)
    alone = ranking if ranking.statistics == ("moments",) else ranking_of("power")
    total = torch.zeros(hidden.units, dtype=torch.float64)
    for norm in hidden.norms:
        readers = norm.readers or (hidden.makes[0].tensor,)  # the embedding is the head, too
        weights = tuple(_rows(checkpoint, reader, 1) for reader in readers)
        view = View(norm.weight, torch.arange(hidden.units), weights, {"moments": seen[norm]})
        scores = _scores(hidden, alone, seed, evidence=GroupEvidence((view,)))
        total += scores / scores.sum().clamp(min=1e-300)
    return best(total, count)


def _scores(
    hidden: Hidden,
    ranking: Ranking,
    seed: int,
    makes: Sequence[Callable[[], Tensor]] = (),
    evidence: GroupEvidence = GroupEvidence(),  # noqa: B008 (it is frozen)
) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    nothing = LazyTensors([])
    slices = Slices(hidden.units, LazyTensors([*makes]), nothing, nothing, draw, "hidden channels", evidence=evidence)
    return checked_scores(ranking, slices)


def _rows(checkpoint: Checkpoint, name: str, axis: int) -> Tensor:
    return checkpoint.read(name).movedim(axis, 0).float()


# -- what runs with the dense model -----------------------------------------------------------------------------------


def norm_points(model: Any, hidden: Hidden, seen: dict[Norm, Variances]) -> list[Point]:
    """Points that fill ``seen`` with what the layers behind each norm read."""

    def visit(norm: Norm, pairs: Covariances | None, alone: Variances) -> None:
        seen[norm] = alone

    return [Point(_module(model, norm), _output, partial(visit, norm)) for norm in hidden.norms]


def refit_points(
    model: Any, checkpoint: Checkpoint, hidden: Hidden, kept: Tensor, level: str, refitted: dict[str, Tensor]
) -> list[Point]:
    """Points that fill ``refitted`` with the weights that make up best for the channels that are gone, and for what
    that does to the statistic of the norm: the layer reads ``n_K(x_K)``, n_K the norm over the kept channels, and is to
    give what it gave for ``n(x)``."""
    points = []
    for norm in hidden.norms:
        module = _module(model, norm)
        visit = _refit_readers(checkpoint, hidden, norm, kept, level, refitted)
        if not norm.readers:
            visit = _refit_norm(checkpoint, hidden, norm, kept, level, refitted)
        points.append(Point(module, partial(_both, _small_copy(module, kept), kept), visit))
    return points


def _module(model: Any, norm: Norm) -> nn.Module:
    return module_at(model, norm.weight.removesuffix(".weight"))


def _output(x: Tensor, y: Tensor) -> Tensor:
    return y


def _both(small: nn.Module, kept: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """What the norm gives less what the small one gives in its place, and beside it that."""
    narrow = small(x.index_select(-1, kept))
    return torch.cat([y.index_add(-1, kept, -narrow), narrow], -1)


def _small_copy(norm: nn.Module, kept: Tensor) -> nn.Module:
    """In float32, without the hooks of the norm."""
    small = copy.deepcopy(norm)
    small._forward_hooks.clear()
    small._forward_pre_hooks.clear()
    narrow(small, kept)
    return small.float()


def narrow(norm: nn.Module, kept: Tensor) -> None:
    """Make a norm one of the channels ``kept``, whose statistic is over these alone."""
    for name, parameter in norm._parameters.items():
        if parameter is not None:
            norm._parameters[name] = nn.Parameter(parameter.detach()[kept], requires_grad=False)
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (len(kept),)


def _refit_readers(
    checkpoint: Checkpoint, hidden: Hidden, norm: Norm, kept: Tensor, level: str, refitted: dict[str, Tensor]
) -> Visit:
    narrow_ones = torch.arange(hidden.units, hidden.units + len(kept))

    def visit(pairs: Covariances | None, alone: Variances) -> None:
        for reader in norm.readers:
            weight, bias_name = checkpoint.read(reader), f"{reader.removesuffix('weight')}bias"
            bias = checkpoint.read(bias_name) if bias_name in checkpoint.tensors else None
            if not pairs and bias is None:
                continue
            wide = torch.cat([weight, weight[:, kept]], 1)
            small, constant = refit(wide, bias, narrow_ones, pairs or alone, slopes=level == "affine")
            refitted[reader] = small.contiguous()
            if constant is not None:
                refitted[bias_name] = constant

    return visit


def _refit_norm(
    checkpoint: Checkpoint, hidden: Hidden, norm: Norm, kept: Tensor, level: str, refitted: dict[str, Tensor]
) -> Visit:
    """The last norm, where the head has the weights of the embedding, which stay: one factor."""

    def visit(pairs: Covariances | None, alone: Variances) -> None:
        if level == "affine" and pairs and f"{norm.weight.removesuffix('weight')}bias" not in checkpoint.tensors:
            head = checkpoint.read(hidden.makes[0].tensor)
            refitted[norm.weight] = checkpoint.read(norm.weight) * rescale(head, kept, pairs)

    return visit
