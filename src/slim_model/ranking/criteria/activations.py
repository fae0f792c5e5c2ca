"""Criteria that watch what a channel holds where it is read.

A channel that has several read sites (a residual stream, a concatenation) has one number at each; ``combine`` is
their mean, max, min or sum. Papers differ, or do not say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slim_model.errors import InputError
from slim_model.ranking.criteria.slices import Slices
from slim_model.ranking.evidence.gather import View
from slim_model.ranking.evidence.statistics import Classes

_ROUNDING = 1e-24  # of the square of a mean: what is left of the variance of a constant in float64


def mean_activation(slices: Slices, *, combine: str = "mean") -> Tensor:
    """Size of the mean activation.

    Molchanov, Tyree, Karras, Aila, Kautz, Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR
    2017, section 2.2: ``s_c = |E[x_c]|`` over samples and positions. ``x = [[1, 3], [0, 1]]`` scores ``[2, 0.5]``.
    """
    return slices.over_read_sites(lambda view: view.statistics["moments"].mean.abs(), combine)


def variance(slices: Slices, *, weighted: bool = False, combine: str = "mean") -> Tensor:
    """Variance of the activation: a constant can go into the next layer's bias, whatever its size.

    Molchanov 2017 (as mean-activation): ``s_c = E[x_c^2] - E[x_c]^2``; ``x = [[1, 3], [7, 7]]`` scores ``[1, 0]``.
    ``weighted`` is FLAP's WIFV (An, Zhao, Yu, Tang, Wang, AAAI 2024): times ``sum W[:, c]^2`` of the reading weights.
    """

    def score(view: View) -> Tensor:
        return view.statistics["moments"].variance * (reading_weight_norms(view) if weighted else 1)

    return slices.over_read_sites(score, combine)


def power(slices: Slices, *, combine: str = "mean") -> Tensor:
    """Squared error of the next layer when a channel's values go and nothing makes up for them, others apart.

    Wanda (Sun, Liu, Bair, Kolter, ICLR 2024) on channels: ``s_c = E[x_c^2] sum W[:, c]^2``. Goes with ``--recover
    none``, as ``variance:weighted=true`` does with ``bias`` and ``reconstruction`` with ``affine``. ``x = [[1, 3], [2,
    0]]`` read by weights of 1 scores ``[5, 2]``.
    """

    def score(view: View) -> Tensor:
        moments = view.statistics["moments"]
        return (moments.variance + moments.mean.square()) * reading_weight_norms(view)

    return slices.over_read_sites(score, combine)


def apoz(slices: Slices, *, combine: str = "mean") -> Tensor:
    """Share of values that are not zero: one less the Average Percentage of Zeros.

    Hu, Peng, Tai, Tang, Network Trimming, 2016, equation 1: ``APoZ_c = sum 1[x_c = 0] / (N M)``, high = remove. Where
    an activation never gives exact zeros (GELU, SiLU) a value counts as zero if it was at most 0 ahead of it, which
    for ReLU is the same. ``x = [[0, 3], [0, 0]]`` scores ``[0.5, 0]``. Refused where nothing is ever zero.
    """
    zeros = [view.statistics["zeros"] for view in slices.evidence.views]
    if zeros and not any(bool(z.off.any()) for z in zeros):
        raise InputError(
            f"apoz counts zeros, and the values read from '{slices.name}' have none: no ReLU or GELU stands before "
            f"their readers. Use another criterion, or leave the layer as it is: --keep '{slices.name}'."
        )

    def score(view: View) -> Tensor:
        return 1 - view.statistics["zeros"].off / view.statistics["zeros"].total

    return slices.over_read_sites(score, combine)


def entropy(slices: Slices, *, range: str = "layer", combine: str = "mean") -> Tensor:
    """Entropy of the mean of a channel's map, over samples, in nats.

    Luo, Wu, An Entropy-based Pruning Method for CNN Compression, 2017, section 3.2: ``H_c = -sum p_i log p_i``, p_i
    the share of samples in bin i. The paper leaves bins and range open: bins are powers of two wide, 64 to 128 over
    the range, which is that of all channels (``range=layer``), so that a faint channel scores low, or each channel's
    own (``range=channel``), which makes H blind to scale. A constant scores 0; two values equally often ``log 2``.
    """
    if range not in ("layer", "channel"):
        raise InputError(f"entropy:range={range} is unknown; it is layer or channel.")

    def score(view: View) -> Tensor:
        shares = view.statistics["histogram"].shares(shared_range=range == "layer")
        return torch.special.entr(shares).sum(1)

    return slices.over_read_sites(score, combine)


def hrank(slices: Slices, *, combine: str = "mean") -> Tensor:
    """Mean rank of a channel's maps.

    Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, HRank, CVPR 2020, equation 5: ``s_c = sum_i rank(x_c(i)) / N``. Maps of 1
    by 1 say nothing: such sites are left out, and a group read nowhere else is refused. ``I`` of size 2 and a map of
    equal values score ``[2, 1]``.
    """
    views = slices.evidence.views
    if views and all(view.statistics["ranks"].full == 1 for view in views):
        raise InputError(
            f"hrank needs maps, and what is read from '{slices.name}' has none (height or width 1). "
            f"Use another criterion, or leave the layer as it is: --keep '{slices.name}'."
        )

    def score(view: View) -> Tensor:
        ranks = view.statistics["ranks"]
        return ranks.total / ranks.count if ranks.full > 1 else torch.full((len(ranks.total),), torch.nan)

    return slices.over_read_sites(score, combine)


def lda(slices: Slices, *, form: str = "ratio", combine: str = "mean") -> Tensor:
    """How well the largest value of a channel's map (its fire score) tells the classes apart.

    Tian, Arbel, Clark, Deep LDA-Pruned Nets for Efficient Facial Gender Classification, CVPR Workshops 2017:
    ``Sb / (Sb + Sw)`` between and within classes, the intra-class correlation. ``form=icc1`` is ICC(1) of the random
    effects model, ``(MSB - MSW) / (MSB + (n0 - 1) MSW)``, which is not inflated where classes are small. A constant
    scores 0. Fire ``[0, 0 | 1, 1]`` of two classes scores 1, ``[0, 1 | 0, 1]`` scores 0.
    """
    if form not in ("ratio", "icc1"):
        raise InputError(f"lda:form={form} is unknown; it is ratio or icc1.")
    return slices.over_read_sites(lambda view: _icc(view.statistics["classes"].counted(), form), combine)


def _icc(classes: Classes, form: str) -> Tensor:
    fired = classes.fired
    kinds, count = len(classes.ids), torch.as_tensor(fired.count)
    samples = float(count.sum())
    if kinds < 2 or samples <= kinds:
        raise InputError(
            f"lda compares classes, and the data has {kinds} in {samples:.0f} samples: "
            "it needs two, and more samples than classes. Raise --samples."
        )
    grand = (count * fired.mean).sum(0) / samples
    between, within = (count * (fired.mean - grand).square()).sum(0), fired.m2.sum(0)
    constant = between + within <= _ROUNDING * samples * grand.square()
    if form == "ratio":
        top, bottom = between, between + within
    else:
        msb, msw = between / (kinds - 1), within / (samples - kinds)
        typical = (samples - float(count.square().sum()) / samples) / (kinds - 1)
        top, bottom = msb - msw, msb + (typical - 1) * msw
    return torch.where(constant, 0.0, top / torch.where(constant, 1.0, bottom))


def correlation(slices: Slices, *, taps: str = "mean", combine: str = "mean") -> Tensor:
    """How closely the outputs of the next layer follow a channel, summed over these outputs.

    Sun, Wang, Tang, Sparsifying Neural Network Connections for Face Recognition, CVPR 2016, equation 1:
    ``r_oc = E[(a_o - E a_o)(b_c - E b_c)] / (s_o s_c)`` between an input and an output of a layer; here
    ``s_c = sum_o |r_oc|``, for kernels the ``mean`` (or ``max``) over taps. 0 where one side is constant. An output
    that equals channel 1 while channel 2 is independent scores ``[1, 0]``.
    """
    if taps not in ("mean", "max"):
        raise InputError(f"correlation:taps={taps} is unknown; it is mean or max.")

    def score(view: View) -> Tensor:
        readers = view.statistics["correlations"].absolute()
        rows = [(r.mean(1) if taps == "mean" else r.amax(1)).sum(1) for r in readers]
        return torch.stack(rows).sum(0)

    return slices.over_read_sites(score, combine)


def reading_weight_norms(view: View) -> Tensor:
    """``(k,)`` squared norms of the weights that read each channel; 1 where no weights do."""
    norms = [w.double().square().sum(1) for w in view.weights]
    return torch.stack(norms).sum(0) if norms else torch.ones(len(view.channel), dtype=torch.float64)
