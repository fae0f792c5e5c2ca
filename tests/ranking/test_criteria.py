"""Laws over the table of criteria, and what is said where something is missing."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from criteria_nets import (
    BY_INDEX,
    GREEDY,
    SAMPLES,
    WITH_DATA,
    coupled,
    net,
    odd_net,
    raw,
    reads,
    renamed,
    samples,
    scores_of,
)
from slim_model import CRITERIA, InputError, Slices, slim
from slim_model.data.open_data import open_data
from slim_model.ranking.criteria import Ranking
from slim_model.ranking.criteria.slices import slices_of
from slim_model.ranking.score import break_ties, score

# -- laws over the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_DATA)
@pytest.mark.parametrize("sizes", [[11, 12], [1, 5, 2, 7, 3, 4, 1]])
def test_how_samples_fall_into_batches_does_not_matter(name: str, sizes: list[int]) -> None:
    x, y = samples()
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    for a, b in zip(scores_of(name), raw(net(), name, batches), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - BY_INDEX - {"bn-scale"}))
def test_renaming_channels_renames_scores(name: str) -> None:
    order = [4, 2, 0, 5, 1, 3]
    before, after = scores_of(name), raw(renamed(order), name)
    assert torch.allclose(before[0][order], after[0], rtol=1e-7, atol=1e-11)
    assert torch.allclose(before[1], after[1], rtol=1e-7, atol=1e-11)


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
    with pytest.raises(InputError, match=r"conv2d.*criteria_nets.py:\d+.*samples 0 to 22"):
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
