"""Criteria that need nothing but the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.ranking.criteria.slices import Slices


def random(slices: Slices) -> Tensor:
    """Uniform noise from the seed: the baseline every criterion has to beat.

    Mittal, Bhardwaj, Khapra, Ravindran, Recovering from Random Pruning, WACV 2018. Report mean and spread over seeds:
    ``seed=0`` may score ``[0.5, 0.77, 0.09]``, another seed another order.
    """
    return torch.rand(slices.width, generator=slices.generator)


def l1(slices: Slices, *, fold_bn: bool = False) -> Tensor:
    """Sum of absolute weights of the filters that make a channel.

    Li, Kadav, Durdanovic, Samet, Graf, Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1:
    ``s_o = sum |W[o]|``. Members of a coupled group are summed. ``W = [[1, -2], [0, 1]]`` scores ``[3, 1]``.
    ``fold_bn`` takes the weights times the scale of the BatchNorm behind them, which is what the network sees: with
    gamma ``[1, 6]`` and variance 1 the same W scores ``[3, 6]``.
    """
    return _sum(slices, [_rows(torch.abs, w) for w in _made(slices, fold_bn)])


def l2(slices: Slices, *, fold_bn: bool = False) -> Tensor:
    """Euclidean norm of the filters that make a channel, all members taken as one vector.

    Li 2017 (as l1): ``s_o = sqrt(sum W[o]^2)``. ``W = [[3, -4], [0, 1]]`` scores ``[5, 1]``.
    """
    return _sum(slices, [_rows(torch.square, w) for w in _made(slices, fold_bn)]).sqrt()


def bn_scale(slices: Slices) -> Tensor:
    """Absolute scale of the BatchNorm behind a channel, the mean over those of a coupled group.

    Liu, Li, Shen, Huang, Yan, Zhang, Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017:
    ``s_c = |gamma_c|``, after training with a penalty on it. ``gamma = [0.5, -2]`` scores ``[0.5, 2]``.
    """
    scales = [scale.abs().mean(1) for scale in slices.scales()]
    if not scales or bool(torch.stack(scales).isnan().all(0).any()):
        raise InputError(
            f"bn-scale ranks by the scale of a BatchNorm, and there is none behind '{slices.name}'. "
            f"Use another criterion, or leave the layer as it is: --keep '{slices.name}'."
        )
    return torch.stack(scales).nanmean(0)


def fpgm(slices: Slices) -> Tensor:
    """Distance of a filter to all others of its layer: the one nearest to their geometric median can be replaced.

    He, Liu, Wang, Hu, Yang, Filter Pruning via Geometric Median, CVPR 2019: ``s_o = sum_p ||W[o] - W[p]||``. Members
    of a coupled group are one long filter. ``W = [[0], [1], [3]]`` scores ``[4, 3, 5]``.
    """
    filters = torch.cat([w.double() for w in slices.makes] or [torch.zeros(slices.width, 1)], 1).double()
    filters = filters - filters.mean(0)  # distances stay, rounding shrinks
    squares = filters.square().sum(1)
    distance = (squares[:, None] + squares - 2 * filters @ filters.T).clamp(min=0)
    same = distance <= 1e-13 * (squares[:, None] + squares)  # what is left of equal filters is rounding
    return torch.where(same, 0.0, distance).sqrt().sum(1)


def lamp(slices: Slices) -> Tensor:
    """Squared norm of a filter relative to all that are no smaller; the largest of each layer scores 1.

    Lee, Park, Mo, Ahn, Shin, Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, equation 4, on
    filters in place of weights: ``s_o = ||W[o]||^2 / sum_{p: ||W[p]|| >= ||W[o]||} ||W[p]||^2``. A layer of zeros
    scores 0. ``W = [[1], [2]]`` scores ``[1/5, 1]``. Made to compare layers: use it with ``--scope global``.
    """
    squares = _sum(slices, [w.double().square().sum(1) for w in slices.makes])
    values, inverse = torch.unique(squares, return_inverse=True)
    energy = values * torch.bincount(inverse, minlength=len(values))
    above = energy.flip(0).cumsum(0).flip(0)[inverse]
    return torch.where(above > 0, squares / above, 0.0)


def _made(slices: Slices, fold_bn: bool) -> Sequence[Tensor]:
    return slices.folded() if fold_bn else slices.makes


def _rows(function: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """``function(weight).sum(1)``, some rows at a time: a copy of all of VGG's first linear layer is 400 MB."""
    return torch.cat([function(rows).sum(1) for rows in weight.split(64)])


def _sum(slices: Slices, scores: list[Tensor]) -> Tensor:
    return torch.stack([*scores, torch.zeros(slices.width)]).sum(0)
