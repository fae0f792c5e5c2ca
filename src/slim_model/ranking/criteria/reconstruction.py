"""Criteria that rebuild what the next layers sum: remove one by one whatever costs least, given all that is gone."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_model.ranking.criteria.slices import Slices
from slim_model.ranking.evidence.gather import View
from slim_model.ranking.evidence.rectified_normal import expected_products


def thinet(slices: Slices, *, centre: bool = False) -> Tensor:
    """Squared error of the next layer's sums when a channel's contributions go missing, greedily.

    Luo, Wu, Lin, ThiNet, ICCV 2017, algorithm 1: with ``x_c`` the contribution of channel c to an output, add to the
    removed set T the channel that keeps ``sum (sum_{c in T} x_c)^2`` smallest. All outputs are used, at 10
    positions a sample. ``centre``: errors about the mean, which a bias can make good. The score is the largest error
    so far, relative to that of all, in the order of removal. ``x = [[1, 1], [3, 3]]`` scores ``[1/16, 1]``.
    """
    gram = torch.zeros(slices.width, slices.width, dtype=torch.float64)
    for view in slices.evidence.views:
        sums = view.statistics["contributions"]
        here = (sums.centred if centre else sums.gram).cpu()
        gram[view.channel[:, None], view.channel] += here / here.sum().clamp(min=1e-12 * float(here.trace()) + 1e-300)
    order, errors = [], []
    left, cost, error = torch.ones(slices.width, dtype=torch.bool), gram.diagonal().clone(), 0.0
    for _ in range(slices.width):
        channel = int(torch.where(left, cost, torch.inf).argmin())
        error += float(cost[channel])
        left[channel] = False
        cost += 2 * gram[channel]
        order.append(channel)
        errors.append(error)
    return _in_order(order, errors)


def reconstruction(slices: Slices, *, ridge: float = 1e-4) -> Tensor:
    """Least squares error of the next layer's sums when they are rebuilt from the channels that are left, greedily.

    Optimal Brain Surgeon (Hassibi, Stork, NeurIPS 1992) on channels, as in ZipLM (Kurtic, Frantar, Alistarh, NeurIPS
    2023) and OSSCAR (Meng et al., ICML 2024), with one covariance S between channels for all taps of a kernel: remove
    the c of smallest ``|W[:, c]|^2 / (S^-1)_cc``, fold it into the others, and go on. With S the identity and columns
    of norms ``[1, 2]`` the score is ``[1/5, 1]``; a channel that repeats another costs nothing. The intercept is free.
    """
    return _greedy([_of_view(view, slices.width, ridge) for view in slices.evidence.views], slices.width)


def kernel(slices: Slices, *, ridge: float = 1e-3) -> Tensor:
    """``reconstruction`` without data: products of channels are those expected of their filters alone.

    Filters, BatchNorm folded in, as rows v; what comes out of two has the expected product
    ``|v| |w| (sin t + (pi - t) cos t) / 2 pi`` with t the angle between them, the arc-cosine kernel of Cho, Saul 2009
    (see ``rectified_normal``). Goes with ``--recover data-free``. Of two equal filters one costs nothing.
    """
    filters = [rows.double() for rows in slices.folded()] or [torch.zeros(slices.width, 1)]
    _, product = expected_products(torch.cat(filters, 1), torch.zeros(slices.width))
    gram = sum((w.double() @ w.double().T for w in slices.reads), torch.zeros_like(product))
    everything = torch.arange(slices.width)
    return _greedy([_SiteInputs(product, gram, everything, slices.width, ridge, product.diagonal() > 0)], slices.width)


def _greedy(parts: list[_SiteInputs], width: int) -> Tensor:
    left = torch.ones(width, dtype=torch.bool)
    order, errors, error = [], [], 0.0
    for _ in range(width):
        cost = torch.stack([part.cost() for part in parts]).sum(0) if parts else torch.zeros(width)
        channel = int(torch.where(left, cost, torch.inf).argmin())
        error += float(cost[channel])
        left[channel] = False
        for part in parts:
            part.remove(channel)
        order.append(channel)
        errors.append(error)
    return _in_order(order, errors)


def _of_view(view: View, width: int, ridge: float) -> _SiteInputs:
    moments = view.statistics["covariance"]
    covariance = (moments.scatter / moments.count).cpu()
    gram = torch.zeros_like(covariance)
    for weight in view.weights:
        gram += weight.double() @ weight.double().T
    if not view.weights:
        gram = torch.eye(len(covariance), dtype=torch.float64)
    changes = covariance.diagonal() > 1e-24 * moments.mean.square().cpu()  # else dead, or a constant
    return _SiteInputs(covariance, gram, view.channel, width, ridge, changes)


class _SiteInputs:
    """One read site: the inverse covariance of its channels and the products of the weights that read them."""

    def __init__(
        self, covariance: Tensor, gram: Tensor, channel: Tensor, width: int, ridge: float, changes: Tensor
    ) -> None:
        size = len(covariance)
        self.total = float((covariance * gram).sum().clamp(min=1e-300))
        small = ridge * float(covariance.diagonal().mean()) + 1e-300
        damped = covariance + small * torch.eye(size, dtype=torch.float64)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.gram, self.channel, self.width, self.changes = gram, channel, width, changes
        self.at = torch.full((width,), -1)
        self.at[channel] = torch.arange(size)
        self.left, self.count = torch.ones(size, dtype=torch.bool), size

    def cost(self) -> Tensor:
        here = torch.where(self.left & self.changes, self.gram.diagonal() / self.inverse.diagonal(), 0.0)
        return here.new_zeros(self.width).index_add_(0, self.channel, here / self.total)

    def remove(self, channel: int) -> None:
        c = int(self.at[channel])
        if c < 0:
            return
        pivot, row = self.inverse[c].clone(), self.gram[c].clone()
        fold = -pivot / pivot[c]  # x_c = sum of fold * x_k over the others
        fold[c] = 0
        # In place: what is folded into the others, outer(fold, row) + outer(row, fold) + row_c outer(fold, fold).
        half = row + fold * (row[c] / 2)
        self.gram.addr_(fold, half).addr_(half, fold)
        self.inverse.addr_(pivot, pivot, alpha=-1 / float(pivot[c]))
        self.left[c] = False
        self.inverse[c, c] = 1
        self.count -= 1
        if 2 * self.count < len(self.left):
            self._keep_what_is_left()

    def _keep_what_is_left(self) -> None:
        """Each removal takes time in proportion to the square of what is held."""
        left = torch.nonzero(self.left).flatten()
        self.gram, self.inverse = (x[left[:, None], left] for x in (self.gram, self.inverse))
        self.channel, self.changes, self.left = self.channel[left], self.changes[left], self.left[left]
        self.at.fill_(-1)
        self.at[self.channel] = torch.arange(len(left))


def _in_order(order: list[int], errors: list[float]) -> Tensor:
    """The largest error so far, relative to the last, for each channel; what is removed later scores a little more."""
    errors_so_far = torch.tensor(errors, dtype=torch.float64).clamp(min=0).cummax(0).values
    score = errors_so_far / errors_so_far[-1].clamp(min=1e-300)
    score = score + torch.arange(len(order)) * 1e-12
    return torch.empty_like(score).scatter_(0, torch.tensor(order), score)
