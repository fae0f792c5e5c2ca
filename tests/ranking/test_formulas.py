"""Every criterion is compared with its formula, written out here without slim-model."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from criteria_nets import (
    SAMPLES,
    coupled,
    net,
    reads,
    samples,
    scores_of,
)
from slim_model import CRITERIA, InputError
from slim_model.coupling.couple import couple
from slim_model.graph.trace import trace
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify


def filters(group: int) -> np.ndarray:
    return (net().conv1, net().conv2)[group].weight.detach().numpy().reshape((6, 4)[group], -1)


def gated(gates: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """The mean loss with a gate on each channel of both groups."""
    x = F.relu(net().conv2(net().hidden(x) * gates[:6, None, None])) * gates[6:, None, None]
    return F.cross_entropy(net().fc(x.flatten(1)), labels)


def gate_slopes(group: int) -> np.ndarray:
    """d loss of one sample / d gate: (sample, channel)"""
    ones = torch.ones(10, dtype=torch.float64)
    rows = [
        torch.autograd.functional.jacobian(lambda g, x=x, y=y: gated(g, x[None], y[None]), ones)
        for x, y in zip(*samples(), strict=True)
    ]
    return torch.stack(rows)[:, [slice(0, 6), slice(6, 10)][group]].numpy()


def loss_without(group: int, removed: list[int]) -> float:
    gates = torch.ones(10, dtype=torch.float64)
    gates[[6 * group + c for c in removed]] = 0
    return float(gated(gates, *samples()).detach())


def entropies(group: int, *, own: bool) -> list[float]:
    means = reads(group).mean((2, 3))
    return [_entropy(means[:, c], means[:, c] if own else means) for c in range(means.shape[1])]


def _entropy(values: np.ndarray, span: np.ndarray) -> float:
    e = next(e for e in range(-80, 80) if np.floor(span.max() / 2.0**e) - np.floor(span.min() / 2.0**e) < 128)
    _, counts = np.unique(np.floor(values / 2.0**e), return_counts=True)
    return float(-sum(n / len(values) * math.log(n / len(values)) for n in counts))


def icc1(group: int) -> list[float]:
    """From the F of a one-way analysis of variance: ICC(1) = (F - 1) / (F - 1 + n0)."""
    fire, labels = reads(group).max((2, 3)), samples()[1].numpy()
    sizes = np.bincount(labels)
    n0 = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(sizes) - 1)
    ratios = [stats.f_oneway(*(fire[labels == k, c] for k in range(3))).statistic for c in range(fire.shape[1])]
    return [(f - 1) / (f - 1 + n0) for f in ratios]


def intra_class(group: int) -> list[float]:
    fire, labels = reads(group).max((2, 3)), samples()[1].numpy()
    scores = []
    for f in fire.T:
        within = sum(((f[labels == k] - f[labels == k].mean()) ** 2).sum() for k in range(3))
        scores.append(1 - within / ((f - f.mean()) ** 2).sum())
    return scores


def columns(group: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (position, channel, tap) and weights (out, channel, tap) of the next layer."""
    x = torch.from_numpy(reads(group))
    if group == 1:
        return x.flatten(2).numpy(), net().fc.weight.detach().numpy().reshape(3, 4, 9)
    taps = F.unfold(x, 3, padding=1, stride=2).unflatten(1, (6, 9))
    return taps.permute(0, 3, 1, 2).reshape(-1, 6, 9).numpy(), net().conv2.weight.detach().flatten(2).numpy()


def correlations(group: int) -> list[float]:
    x, weight = columns(group)
    y = np.einsum("sct,oct->so", x, weight)
    scores = np.zeros(x.shape[1])
    for c, t, o in itertools.product(*map(range, (*x.shape[1:], weight.shape[0]))):
        if x[:, c, t].std() > 0:
            scores[c] += abs(np.corrcoef(x[:, c, t], y[:, o])[0, 1]) / x.shape[2]
    return scores.tolist()


def greedy(costs: Any, width: int) -> list[float]:
    """Remove the cheapest; ``costs(removed)`` is the error of a whole set. The largest so far, relative to the end."""
    removed: list[int] = []
    scores, worst = [0.0] * width, 0.0
    total = max(0.0, costs(list(range(width))))
    history = []
    for _ in range(width):
        best = min((c for c in range(width) if c not in removed), key=lambda c: costs([*removed, c]))
        removed.append(best)
        worst = max(worst, costs(removed))
        history.append((best, worst))
    for c, error in history:
        scores[c] = error / max(worst, total)
    return scores


def thinet(group: int, *, centre: bool = False) -> list[float]:
    x, weight = columns(group)
    added = np.einsum("sct,oct->soc", x, weight)
    added = added - added.mean(0) if centre else added
    return greedy(lambda gone: (added[:, :, gone].sum(2) ** 2).sum(), x.shape[1])


def rebuilt(group: int) -> list[float]:
    """Least squares with an intercept, over all positions; each tap sees the same map."""
    x = reads(group).transpose(0, 2, 3, 1).reshape(-1, (6, 4)[group])
    x = x - x.mean(0)
    weight = columns(group)[1].transpose(1, 0, 2).reshape(x.shape[1], -1)
    y = x @ weight

    def error(gone: list[int]) -> float:
        left = [c for c in range(x.shape[1]) if c not in gone]
        fit = x[:, left] @ np.linalg.lstsq(x[:, left], y, rcond=None)[0] if left else 0
        return float(((y - fit) ** 2).sum())

    return greedy(error, x.shape[1])


def expected(group: int) -> list[float]:
    """Least squares, where what two channels give has the product |v| |w| (sin t + (pi - t) cos t) / 2 pi."""
    rows = folded(group)
    norms = np.linalg.norm(rows, axis=1)
    t = np.arccos(np.clip(rows @ rows.T / np.outer(norms, norms), -1, 1))
    product = np.outer(norms, norms) * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi)
    weight = columns(group)[1].transpose(1, 0, 2).reshape(len(rows), -1)

    def error(gone: list[int]) -> float:
        left = [c for c in range(len(rows)) if c not in gone]
        fold = (
            np.linalg.solve(product[np.ix_(left, left)], product[np.ix_(left, gone)])
            if left
            else np.zeros((0, len(gone)))
        )
        rest = product[np.ix_(gone, gone)] - product[np.ix_(gone, left)] @ fold
        return float(np.trace(weight[gone].T @ rest @ weight[gone]))

    return greedy(error, len(rows))


def hessians(group: int) -> tuple[np.ndarray, np.ndarray]:
    h = torch.autograd.functional.hessian(lambda g: gated(g, *samples()), torch.ones(10, dtype=torch.float64)).numpy()
    values, vectors = np.linalg.eigh(h)
    at = np.abs(values).argmax()
    mine = [slice(0, 6), slice(6, 10)][group]
    return np.diag(h)[mine] / 2, (abs(values[at]) * vectors[:, at] ** 2)[mine]


def best_mask(group: int) -> list[float]:
    width = (6, 4)[group]
    drawn = torch.rand(32, width, generator=torch.Generator().manual_seed(group)).argsort(1)[:, : width // 2]
    losses = np.array([loss_without(group, row.tolist()) for row in drawn])
    gone = np.zeros((32, width), bool)
    np.put_along_axis(gone, drawn.numpy(), True, 1)
    harm = np.array([losses[gone[:, c]].mean() - losses[~gone[:, c]].mean() for c in range(width)])
    kept = ~gone[losses.argmin()]
    return ((harm - harm.min()) / (harm.max() - harm.min()) + np.where(kept, 1, -1)).tolist()


def folded(group: int) -> np.ndarray:
    bn = net().bn
    factor = (bn.weight.abs() / (bn.running_var + bn.eps).sqrt()).detach().numpy() if group == 0 else np.ones(4)
    return filters(group) * factor[:, None]


FORMULAS: dict[str, Any] = {
    "random": lambda g: torch.rand((6, 4)[g], generator=torch.Generator().manual_seed(g)).tolist(),
    "l1": lambda g: [sum(abs(v) for v in row) for row in filters(g)],
    "l1:fold_bn=true": lambda g: np.abs(folded(g)).sum(1),
    "l2": lambda g: [math.sqrt(sum(v * v for v in row)) for row in filters(g)],
    "l2:fold_bn=true": lambda g: np.sqrt((folded(g) ** 2).sum(1)),
    "fpgm": lambda g: [sum(np.linalg.norm(a - b) for b in filters(g)) for a in filters(g)],
    "lamp": lambda g: [
        (a**2).sum() / sum((b**2).sum() for b in filters(g) if (b**2).sum() >= (a**2).sum()) for a in filters(g)
    ],
    "mean-activation": lambda g: reads(g).mean((0, 2, 3)),
    "variance": lambda g: reads(g).var((0, 2, 3)),
    "variance:weighted=true": lambda g: reads(g).var((0, 2, 3)) * (columns(g)[1] ** 2).sum((0, 2)),
    "power": lambda g: (reads(g) ** 2).mean((0, 2, 3)) * (columns(g)[1] ** 2).sum((0, 2)),
    "apoz": lambda g: [1 - sum(v == 0 for v in x) / len(x) for x in reads(g).swapaxes(0, 1).reshape((6, 4)[g], -1)],
    "entropy": lambda g: entropies(g, own=False),
    "entropy:range=channel": lambda g: entropies(g, own=True),
    "hrank": lambda g: [np.mean([np.linalg.matrix_rank(m) for m in maps]) for maps in reads(g).swapaxes(0, 1)],
    "lda": intra_class,
    "lda:form=icc1": icc1,
    "correlation": correlations,
    "taylor": lambda g: np.abs(gate_slopes(g)).mean(0),
    "taylor:form=squared": lambda g: (gate_slopes(g) ** 2).mean(0),
    "taylor:normalise=true": lambda g: np.abs(gate_slopes(g)).mean(0) / np.linalg.norm(np.abs(gate_slopes(g)).mean(0)),
    "fisher": lambda g: (gate_slopes(g) ** 2).sum(0) / (2 * SAMPLES),
    "hessian": lambda g: hessians(g)[0],
    "hessian:form=leading": lambda g: hessians(g)[1],
    "thinet": thinet,
    "thinet:centre=true": lambda g: thinet(g, centre=True),
    "reconstruction:ridge=1e-12": rebuilt,
    "kernel:ridge=1e-12": expected,
    "random-mask": best_mask,
    "oracle": lambda g: [abs(loss_without(g, [c]) - loss_without(g, [])) for c in range((6, 4)[g])],
    "oracle:form=signed": lambda g: [loss_without(g, [c]) - loss_without(g, []) for c in range((6, 4)[g])],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_score_is_the_formula(name: str) -> None:
    for group, result in enumerate(scores_of(name)):
        assert result.tolist() == pytest.approx(list(FORMULAS[name](group)), rel=1e-6, abs=1e-9), (name, group)


def test_every_row_has_a_formula_here() -> None:
    assert {name.partition(":")[0] for name in FORMULAS} | {"bn-scale"} == set(CRITERIA)
    for name, row in CRITERIA.items():
        doc = row.function.load().__doc__ or ""
        assert "``" in doc, name
        assert any(year in doc for year in map(str, range(1989, 2026))), f"{name} cites no paper"


def test_bn_scale_is_the_mean_over_the_norms_of_a_group() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 1)).eval()
    nn.init.normal_(block[1].weight)
    coupling = couple(simplify(trace(block, (torch.randn(2, 2, 4, 4),))))
    assert torch.allclose(score(coupling, "bn-scale")[0], block[1].weight.detach().abs().double())
    with pytest.raises(InputError, match=r"there is none behind 'conv2'"):
        score(coupled(net()), "bn-scale")
