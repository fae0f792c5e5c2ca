"""Laws over the table of criteria. Every row is compared with its formula, written out here without slim-model."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from slim_model import CRITERIA, InputError, Slices, slim
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.data.open_data import open_data
from slim_model.graph.trace import trace
from slim_model.ranking.criteria import Ranking, ranking_of
from slim_model.ranking.criteria.slices import slices_of
from slim_model.ranking.evidence.gate_gradients import GateGradients
from slim_model.ranking.evidence.gather import GroupEvidence, View, gather
from slim_model.ranking.evidence.statistics import ChannelMoments
from slim_model.ranking.score import break_ties, score
from slim_model.simplifying.simplify import simplify

SAMPLES = 23
BY_INDEX = {"random", "random-mask"}  # draw by the number of a channel, so renaming channels changes them
GREEDY = {"thinet", "reconstruction", "kernel"}  # the second of two twins is not as cheap as the first
WITH_DATA = [name for name, row in CRITERIA.items() if row.needs != "weights"]


class Net(nn.Module):
    """Two groups: conv1 (6 channels, read by conv2) and conv2 (4 channels, read flattened)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4 * 9, 3)
        for tensor in (self.bn.weight, self.bn.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(self.bn.bias, 0, 0.5)
        nn.init.uniform_(self.conv2.bias, 0.5, 1.5)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(self.hidden(x))).flatten(1))


@functools.cache
def net() -> Net:
    return Net().double().eval()


@functools.cache
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (SAMPLES,), generator=generator)


def coupled(model: nn.Module) -> Coupling:
    return couple(simplify(trace(model, (samples()[0][:2],))))


@functools.cache
def scores_of(name: str) -> list[Tensor]:
    return raw(net(), name)


def raw(model: nn.Module, criterion: Any, batches: Any = None) -> list[Tensor]:
    """Scores as the criterion gives them, ties and all."""
    coupling, ranking = coupled(model), ranking_of(criterion)
    source = [samples()] if batches is None else batches
    data = open_data(source, coupling.graph.inputs, samples=SAMPLES, batch=SAMPLES)
    found: list[Tensor] = []
    keeping = Ranking(lambda s: found.append(ranking(s)) or found[-1], ranking.needs, ranking.statistics, ranking.tries)
    score(coupling, keeping, data=data)
    return [x.detach().double() for x in found]


# -- brute force ----------------------------------------------------------------------------------------------------


def reads(group: int) -> np.ndarray:
    """What the next layer takes in: (sample, channel, height, width)."""
    with torch.no_grad():
        x = net().hidden(samples()[0])
        return (x if group == 0 else F.relu(net().conv2(x))).numpy()


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


# -- laws over the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_DATA)
@pytest.mark.parametrize("sizes", [[11, 12], [1, 5, 2, 7, 3, 4, 1]])
def test_how_samples_fall_into_batches_does_not_matter(name: str, sizes: list[int]) -> None:
    x, y = samples()
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    for a, b in zip(scores_of(name), raw(net(), name, batches), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def renamed(order: list[int]) -> Net:
    model = copy.deepcopy(net())
    with torch.no_grad():
        for owner in (model.conv1, model.bn):
            for tensor in (*owner.parameters(), *owner.buffers()):
                if tensor.dim():
                    tensor.copy_(tensor[order].clone())
        model.conv2.weight.copy_(model.conv2.weight[:, order].clone())
    return model


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - BY_INDEX - {"bn-scale"}))
def test_renaming_channels_renames_scores(name: str) -> None:
    order = [4, 2, 0, 5, 1, 3]
    before, after = scores_of(name), raw(renamed(order), name)
    assert torch.allclose(before[0][order], after[0], rtol=1e-7, atol=1e-11)
    assert torch.allclose(before[1], after[1], rtol=1e-7, atol=1e-11)


@functools.cache
def odd_net() -> Net:
    """Channels 0 and 1 are twins, 2 is dead, 3 holds a constant, 4 is positive everywhere."""
    model = renamed([0, 0, 2, 3, 4, 5])
    with torch.no_grad():
        model.bn.weight[2:4], model.bn.bias[2], model.bn.bias[3] = 0, -1, 2
        model.bn.bias[4] = 100
    return model


@functools.cache
def odd(name: str) -> Tensor:
    return raw(odd_net(), name)[0]


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - BY_INDEX - GREEDY - {"bn-scale"}))
def test_twins_score_alike(name: str) -> None:
    assert odd(name)[0].item() == pytest.approx(odd(name)[1].item(), rel=1e-6, abs=1e-12)


def test_a_repeated_channel_costs_nothing_to_rebuild() -> None:
    scores = odd("reconstruction")
    assert min(scores[:2]) < 1e-4 < max(scores[:2])


@pytest.mark.parametrize("name", sorted(set(WITH_DATA) - {"random-mask"}))
def test_a_dead_channel_scores_least(name: str) -> None:
    scores = odd(name)
    assert torch.isfinite(scores).all()
    assert scores[2].item() == pytest.approx(0, abs=1e-11)
    if name != "hessian":  # curvature may be negative
        assert (scores >= scores[2] - 1e-11).all()


@pytest.mark.parametrize("name", ["variance", "entropy", "lda", "lda:form=icc1"])
def test_a_constant_channel_tells_nothing(name: str) -> None:
    assert odd(name)[3].item() == pytest.approx(0, abs=1e-12)


def test_a_constant_channel_is_rebuilt_by_the_intercept() -> None:
    assert odd("reconstruction")[3] < 1e-9
    assert odd("thinet")[3] > raw(odd_net(), "thinet:centre=true")[0][3]  # borders still change


def test_what_the_matrix_of_edge_cases_says_of_constants() -> None:
    assert odd("apoz")[3] == odd("apoz")[4] == 1  # never zero, all positive: kept
    assert odd("mean-activation")[3].item() == pytest.approx(2)
    assert odd("hrank")[3].item() == 1


def test_equal_scores_fall_to_reading_weights_then_to_the_first() -> None:
    coupling = coupled(net())
    slices = slices_of(coupling, coupling.groups[0], 0)
    norms = slices.reads[0].square().sum(1)
    order = break_ties(torch.zeros(6, dtype=torch.float64), slices)
    assert order.argsort().tolist() == norms.argsort().tolist()
    alike = Slices(3, (), (), (), torch.Generator())
    assert break_ties(torch.ones(3, dtype=torch.float64), alike).argsort().tolist() == [2, 1, 0]
    kept = break_ties(torch.tensor([1.0, 0.0, 1.0]).double(), alike)
    assert kept.argsort().tolist() == [1, 2, 0]
    assert kept[2] == 1


def test_scores_repeat_exactly() -> None:
    coupling = coupled(net())
    data = open_data([samples()], coupling.graph.inputs, samples=SAMPLES)
    for name in ("random", "random-mask", "apoz", "taylor"):
        first, second = (score(coupling, name, data=data, seed=3) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- what is missing is said ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_DATA)
def test_a_criterion_without_its_data_says_which(name: str) -> None:
    needs = CRITERIA[name].needs
    with pytest.raises(InputError, match=f"'{name}' needs data.*--data SPEC.*data=batches in Python"):
        score(coupled(net()), name)
    unlabelled = open_data(samples()[0], coupled(net()).graph.inputs)
    if needs != "data":
        with pytest.raises(InputError, match=f"'{name}' needs labels.*inputs, labels"):
            score(coupled(net()), name, data=unlabelled)
    else:
        score(coupled(net()), name, data=unlabelled)


@pytest.mark.parametrize("name", ["taylor", "oracle", "hessian"])
def test_a_loss_of_ones_own_replaces_labels(name: str) -> None:
    coupling = coupled(net())
    x, y = samples()
    unlabelled = open_data([x], coupling.graph.inputs, samples=SAMPLES, batch=SAMPLES)
    own = score(coupling, name, data=unlabelled, loss=lambda out, labels: F.cross_entropy(out, y))
    assert all(torch.allclose(a, b) for a, b in zip(own, scores_of(name), strict=True))


@pytest.mark.parametrize("name", WITH_DATA)
def test_nan_is_refused(name: str) -> None:
    x, y = samples()
    broken = x.clone()
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        raw(net(), name, [(broken, y)])


def test_infinite_values_name_the_operator() -> None:
    model = copy.deepcopy(net())
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(InputError, match=r"conv2d.*test_criteria.py:\d+.*samples 0 to 22"):
        raw(model, "apoz")


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("l3", "no criterion is called 'l3'. There are: random, l1"),
        ("l1:bins=3", "'l1' has no option 'bins': its options are fold_bn"),
        ("random:x=1", "it has none"),
        ("l1:fold_bn=maybe", "fold_bn=maybe is not like fold_bn=False"),
        ("apoz:combine=median", "combine=median is not mean, max, min or sum"),
        ("taylor:form=cubic", "form=cubic is unknown"),
        ("lda:form=x", "form=x is unknown"),
        ("entropy:range=x", "range=x is unknown"),
        ("hessian:form=x", "form=x is unknown"),
        ("oracle:form=x", "form=x is unknown"),
        ("correlation:taps=x", "taps=x is unknown"),
        ("random-mask:masks=0", "must be at least 1"),
    ],
)
def test_a_wrong_option_is_explained(criterion: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        raw(net(), criterion)


def test_lda_needs_classes_to_compare() -> None:
    x, y = samples()
    with pytest.raises(InputError, match="has 1 in 23 samples"):
        raw(net(), "lda", [(x, torch.zeros_like(y))])
    with pytest.raises(InputError, match="has 23 in 23 samples"):
        raw(net(), "lda", [(x, torch.arange(SAMPLES) % 100)])


def test_a_class_of_one_sample_counts_between_classes_only() -> None:
    x, y = samples()
    y = y.clone()
    y[0] = 7
    found = raw(net(), "lda", [(x, y)])[0]
    fire = reads(0).max((2, 3))
    for c, f in enumerate(fire.T):
        within = sum(((f[y == k] - f[y == k].mean()) ** 2).sum() for k in (0, 1, 2, 7))
        assert found[c].item() == pytest.approx(1 - within / ((f - f.mean()) ** 2).sum())


# -- faults found in other tools ------------------------------------------------------------------------------------


def test_fisher_counts_every_sample_not_the_last() -> None:
    """Torch-Pruning's Hessian accumulates 1, 4, 9 to 9."""
    parts = [GateGradients(1, t, t.abs(), t.square()) for t in (torch.tensor([t]).double() for t in (1.0, 2.0, 3.0))]
    gates = functools.reduce(lambda a, b: a.merge(b), parts)
    slices = Slices(1, (), (), (), torch.Generator(), evidence=GroupEvidence(gates=gates))
    assert CRITERIA["fisher"](slices).item() == (1 + 4 + 9) / 6
    assert CRITERIA["taylor"](slices).item() == 2


def test_taylor_does_not_cancel_over_samples() -> None:
    """Distiller sums signed gradients; at a minimum they vanish."""
    t = torch.tensor([[1.0], [-1.0]]).double()
    gates = GateGradients(2, t.sum(0), t.abs().sum(0), t.square().sum(0))
    slices = Slices(1, (), (), (), torch.Generator(), evidence=GroupEvidence(gates=gates))
    assert CRITERIA["taylor"](slices).item() == 1


def test_gradients_see_the_batch_norm() -> None:
    """Torch-Pruning's GroupTaylor leaves out the affine of BatchNorm: a BatchNorm of scale 0 makes a constant, and
    the gate's gradient is still that of the constant read."""
    slopes = raw(odd_net(), "taylor")[0]
    assert slopes[3] > 0 == slopes[2]


def test_members_add_up_signed_before_the_square() -> None:
    """Two readers that undo each other: the group's gate has no gradient, whatever each reader's is."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
            self.c.weight.data = -self.b.weight.data

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            return self.b(h) + self.c(h)

    coupling = couple(simplify(trace(Twice().eval(), (torch.randn(2, 3),))))
    data = open_data((torch.randn(30, 3), torch.randint(0, 2, (30,))), coupling.graph.inputs)
    evidence = gather(coupling, data, ("gates",)).groups[0]
    assert evidence.gates is not None
    assert evidence.gates.absolute.max() < 1e-6


def test_fpgm_measures_weights_not_their_squares() -> None:
    """Torch-Pruning raises weights to |w|^2 first: filters w and -w would be at distance 0."""
    slices = Slices(3, (torch.tensor([[1.0], [-1.0], [1.5]]),), (), (), torch.Generator())
    assert CRITERIA["fpgm"](slices).tolist() == pytest.approx([2.5, 4.5, 3.0])


def test_mean_activation_keeps_the_largest() -> None:
    """Distiller keeps the lowest."""
    moments = ChannelMoments(1, (torch.tensor([3.0, 1.0]).double(),), (torch.zeros(2).double(),))
    view = View("", torch.arange(2), (), {"moments": moments})
    slices = Slices(2, (), (), (), torch.Generator(), evidence=GroupEvidence((view,)))
    assert CRITERIA["mean-activation"](slices).tolist() == [3, 1]


def test_apoz_counts_behind_the_batch_norm_and_for_each_feature() -> None:
    """NNI hooks the convolution and applies ReLU itself; Distiller averages over features of linear layers."""
    before = F.relu(net().conv1(samples()[0])).detach().numpy()
    wrong = (before != 0).mean((0, 2, 3))
    assert not np.allclose(scores_of("apoz")[0], wrong)
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = torch.randn(50, 4)
    coupling = couple(simplify(trace(mlp, (x[:2],))))
    found = score(coupling, "apoz", data=open_data([x], coupling.graph.inputs))[0]
    assert torch.allclose(found, (mlp[:2](x) > 0).double().mean(0))


def test_flap_variance_is_exact_at_a_large_mean() -> None:
    """FLAP's running variance is not Welford's; float32 sums of squares lose a mean of 1000."""
    x = torch.randn(1, 3, 400, generator=torch.Generator().manual_seed(0)) + 1000

    def moments(part: Tensor) -> ChannelMoments:
        wide = part.double()
        mean = wide.mean((0, 2))
        return ChannelMoments(part.shape[2], (mean,), ((wide - mean[:, None]).square().sum((0, 2)),))

    merged = functools.reduce(lambda a, b: a.merge(b), map(moments, x.split([1, 150, 249], 2)))
    assert merged.variance.numpy() == pytest.approx(x.double().numpy().var((0, 2)), rel=1e-10)


def test_apoz_refuses_values_that_are_never_zero() -> None:
    mlp = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)).eval()
    coupling = couple(simplify(trace(mlp, (torch.randn(2, 4),))))
    with pytest.raises(InputError, match=r"apoz counts zeros.*'0'.*--keep '0'"):
        score(coupling, "apoz", data=open_data([torch.randn(20, 4)], coupling.graph.inputs))


def test_hrank_refuses_what_has_no_maps() -> None:
    mlp = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    coupling = couple(simplify(trace(mlp, (torch.randn(2, 4),))))
    with pytest.raises(InputError, match="hrank needs maps"):
        score(coupling, "hrank", data=open_data([torch.randn(20, 4)], coupling.graph.inputs))


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.ELU()])
def test_smooth_activations_are_off_where_their_input_is_not_positive(activation: nn.Module) -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, 5), activation, nn.Dropout(0.5), nn.Linear(5, 2)).eval()
    x = torch.randn(50, 4)
    coupling = couple(simplify(trace(mlp, (x[:2],))))
    found = score(coupling, "apoz", data=open_data([x], coupling.graph.inputs))[0]
    assert torch.allclose(found, (mlp[0](x) > 0).double().mean(0))


# -- through the whole pipeline -------------------------------------------------------------------------------------


def test_slim_takes_names_rows_and_callables() -> None:
    model, (x, y) = copy.deepcopy(net()).float(), samples()
    x = x.float()
    by_name = slim(model, x[:2], criterion="apoz", data=(x, y), multiple_of=1)
    by_row = slim(model, x[:2], criterion=CRITERIA["apoz"], data=(x, y), multiple_of=1)
    assert np.array_equal(by_name.plan.keep, by_row.plan.keep)
    assert by_name.report.recipe["ranking"]["criterion"] == by_row.report.recipe["ranking"]["criterion"] == "apoz"
    assert by_name.report.recipe["data"]["data"] == "given in Python (tuple)"
    by_name.report.as_json()
    own = slim(model, x[:2], criterion=lambda s: s.makes[0].abs().sum(1), multiple_of=1)
    assert np.array_equal(own.plan.keep, slim(model, x[:2], criterion="l1", multiple_of=1).plan.keep)
    needy = Ranking(lambda s: s.over_read_sites(lambda v: v.statistics["zeros"].off.double()), "data", ("zeros",))
    assert slim(model, x[:2], criterion=needy, data=x, multiple_of=1).plan.widths == ((6, 3), (4, 2))


def test_a_criterion_must_give_one_finite_score_a_channel() -> None:
    with pytest.raises(InputError, match=r"returned \(1,\) for 'conv1'.*each of its 6 channels"):
        score(coupled(net()), lambda s: torch.zeros(1))
    with pytest.raises(InputError, match="NaN or infinity for 'conv1'"):
        score(coupled(net()), lambda s: torch.full((s.width,), torch.nan))
