"""Layers in a row compute what one did; what goes with a rank is told, and a whole layer costs what it did."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micronets import NETS
from micronets.compiled import graph_of
from slim_model.cost.break_even import ranks_among, share_within
from slim_model.cost.counted import CostModel, by_macs, cost
from slim_model.coupling.couple import couple
from slim_model.coupling.rank_groups import find_rank_groups
from slim_model.data.batches import Data
from slim_model.data.open_data import open_data
from slim_model.errors import InputError
from slim_model.factoring.factor import Factoring, factor
from slim_model.factoring.forms import FORMS
from slim_model.factoring.prove_same import prove_same
from slim_model.factoring.ranks import scores_with_ranks, settle
from slim_model.graph.graph import Graph
from slim_model.proof.capture import capture


class Layers(nn.Module):
    """One of each: a kernel with a stride, without and with a bias, 1x1, more outputs than inputs, a bare weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.strided = nn.Conv2d(8, 12, (3, 5), stride=2, padding=(1, 2), dilation=1)
        self.wide = nn.Conv2d(12, 40, 1)
        self.line = nn.Conv1d(40, 10, 3, padding="same")
        self.bare = nn.Parameter(torch.randn(10, 14) / 3)
        self.head = nn.Linear(14, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.wide(F.relu(self.strided(x))))
        x = F.relu(self.line(x.flatten(2)))
        return self.head(F.relu(x.mean(2) @ self.bare))


@functools.cache
def graph_of_layers() -> Graph:
    torch.manual_seed(0)
    model = Layers()
    nn.init.normal_(model.norm.running_mean)
    return capture(model.eval(), (torch.randn(2, 3, 10, 10),))


@functools.cache
def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.randn(20, 3, 10, 10, generator=generator) + 1 for _ in range(3)]
    opened = open_data(pictures, graph_of_layers().inputs)
    assert opened is not None
    return opened


@functools.cache
def factored(*, with_data: bool) -> Factoring:
    return factor(graph_of_layers(), ("svd", "channel"), data=data() if with_data else None)


@functools.cache
def spatial(*, with_data: bool) -> Factoring:
    return factor(graph_of_layers(), ("spatial",), data=data() if with_data else None)


@pytest.mark.parametrize("with_data", [False, True])
def test_every_layer_is_written_and_nothing_changes(with_data: bool) -> None:
    factoring = factored(with_data=with_data)
    assert [layer.path for layer in factoring.graph.factored] == ["stem", "strided", "wide", "line", "bare", "head"]
    proven = prove_same(factoring, [graph_of_layers().inputs, (torch.randn(3, 3, 10, 10),)])
    assert proven.error is not None
    assert proven.error < 1e-5
    assert not graph_of_layers().factored


@pytest.mark.parametrize("with_data", [False, True])
def test_kernels_as_columns_and_rows(with_data: bool) -> None:
    """Ranks: the lesser of 3 inputs by 3 places and 8 outputs by 3 places; of 8 by 3 and 12 by 5."""
    factoring = spatial(with_data=with_data)
    shapes = {one.path: [factor.shape for factor in one.factors] for one in factoring.graph.factored}
    assert shapes == {
        "stem": [(9, 3, 3, 1), (8, 9, 1, 3)],
        "strided": [(24, 8, 3, 1), (12, 24, 1, 5)],
    }
    proven = prove_same(factoring, [graph_of_layers().inputs, (torch.randn(3, 3, 10, 10),)])
    assert proven.error is not None
    assert proven.error < 1e-5
    assert cost(couple(factoring.graph)) == cost(couple(graph_of_layers()))
    strided = CostModel(couple(factoring.graph)).products()[1]
    # 5 places down by 10 across, then 5 by 5, of two examples; per place of the output as the form says
    assert [one.macs for one in strided.factors] == [2 * 50 * 24 * 24, 2 * 25 * 24 * 60]
    assert [50 * macs for macs in factoring.written[1].split.macs] == [one.macs for one in strided.factors]


@pytest.mark.parametrize("with_data", [False, True])
def test_kernels_between_fewer_channels(with_data: bool) -> None:
    """Tucker-2 has two ranks, and each is a group of its own."""
    factoring = factor(graph_of_layers(), ("tucker",), data=data() if with_data else None)
    shapes = {one.path: [factor.shape for factor in one.factors] for one in factoring.graph.factored}
    assert shapes == {
        "stem": [(3, 3, 1, 1), (8, 3, 3, 3), (8, 8, 1, 1)],
        "strided": [(8, 8, 1, 1), (12, 8, 3, 5), (12, 12, 1, 1)],
        "line": [(30, 40, 1), (10, 30, 3), (10, 10, 1)],
    }
    proven = prove_same(factoring, [graph_of_layers().inputs, (torch.randn(3, 3, 10, 10),)])
    assert proven.error is not None
    assert proven.error < 1e-5
    coupling = couple(factoring.graph)
    assert cost(coupling) == cost(couple(graph_of_layers()))
    names = [coupling.groups[number].name for number in find_rank_groups(coupling)]
    assert names == [f"{layer} (rank {number})" for layer in shapes for number in (1, 2)]
    # half of what the strided layer costs: 100 places read 8 x 8 t, 25 read 8 t x 12 t x 15, then 12 t x 12
    share = share_within([100 * 64, 25 * 1440, 25 * 144], 25 * 1440 / 2)
    assert 100 * 64 * share + 25 * 1440 * share**2 + 25 * 144 * share == pytest.approx(25 * 1440 / 2)
    ranks = ranks_among(coupling)
    assert ranks is not None
    targets = ranks.in_share([float(group.width) for group in coupling.groups], 0.5, lambda _: coupling.keep_all())
    first, second = (number for number, axis in find_rank_groups(coupling).items() if axis.layer == 1)
    assert (targets[first], targets[second]) == pytest.approx((8 * share, 12 * share))


def test_a_kernel_of_rank_one_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [2.0, 4.0]]).expand(2, 2, 2, 2))
    (one,) = factor(capture(model.eval(), (torch.randn(2, 2, 5, 5),)), ("spatial",)).written
    assert one.split.lost[0].tolist() == pytest.approx([1, 0, 0, 0])


def test_the_form_that_loses_least_is_taken() -> None:
    factoring = factor(graph_of_layers(), tuple(FORMS))
    forms = {one.layer.weight: one.form for one in factoring.written}
    assert forms["wide.weight"] == forms["head.weight"] == "svd"
    for name in ("stem.weight", "strided.weight"):
        tried = {
            form: one.split.lost_at(one.layer.matrix.numel() / 2)
            for form in ("channel", "spatial", "decoupled", "tucker")
            for one in factor(graph_of_layers(), (form,)).written
            if one.layer.weight == name
        }
        assert forms[name] == min(tried, key=lambda form: tried[form])


@pytest.mark.parametrize("with_data", [False, True])
def test_ranks_are_sorted_by_what_they_carry(with_data: bool) -> None:
    for one in factored(with_data=with_data).written:
        for lost in one.split.lost:
            assert float(lost.sum()) == pytest.approx(1)
            assert all(a >= b for a, b in pairwise(lost.tolist()))


def test_shares_without_data_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    factoring = factor(capture(model.eval(), (torch.randn(2, 2),)), ("svd",))
    assert factoring.written[0].split.lost[0].tolist() == pytest.approx([0.9, 0.1])


def test_what_goes_with_ranks_is_what_was_told() -> None:
    """On the samples that it was read from: the spread of a layer's error is that of the ranks that are gone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    x = torch.randn(400, 6) @ torch.randn(6, 6) + 2
    graph = capture(model, (x[:2],))
    opened = open_data([x], graph.inputs)
    assert opened is not None
    one = factor(graph, ("svd",), data=opened).written[0]
    first, second = one.split.parts
    fit = x[torch.arange(400) % 5 != 4]
    whole = model[0](fit)
    for rank in range(1, 5):
        inner = F.linear(fit, first.weight[:rank], first.bias[:rank] if first.bias is not None else None)
        error = whole - F.linear(inner, second.weight[:, :rank], second.bias)
        share = error.square().sum() / (whole - whole.mean(0)).square().sum()
        assert float(share) == pytest.approx(float(one.split.lost[0][rank:].sum()), rel=1e-3)
        # no other layer of that rank leaves less: the plain decomposition of the weights does not
        u, s, v = torch.linalg.svd(model[0].weight.detach())
        plain = (whole - whole.mean(0)) - (fit - fit.mean(0)) @ (u[:, :rank] * s[:rank] @ v[:rank]).T
        assert float(error.square().sum()) <= float(plain.square().sum()) * (1 + 1e-5)


def test_with_all_ranks_it_costs_what_the_dense_model_does() -> None:
    dense, factoring = couple(graph_of_layers()), factored(with_data=True)
    coupling = couple(factoring.graph)
    assert cost(coupling) == cost(dense)
    assert CostModel(coupling).memory() >= CostModel(dense).memory()
    settled, keep, _ = settle(coupling, coupling.keep_all(), factoring, couple)
    assert settled.graph is factoring.start
    assert keep.all()


def test_a_layer_pays_below_its_break_even() -> None:
    """Of 8x3x5 taps to 12 outputs 120 r + 12 r < 1440 for r up to 10; a bias each, of the rank and of the outputs."""
    factoring = factored(with_data=True)
    coupling = couple(factoring.graph)
    number, layer = next(
        (g, n) for g, (n, _) in find_rank_groups(coupling).items() if factoring.graph.factored[n].path == "strided"
    )
    for rank, pays in ((11, False), (10, True)):
        keep = coupling.keep_all()
        keep[coupling.groups[number].channels[rank:]] = False
        product = CostModel(coupling).products(keep)[layer]
        assert by_macs(product) is pays
        assert [f.macs for f in product.factors] == [2 * 25 * 120 * rank, 2 * 25 * 12 * rank]
        assert product.whole.macs == 2 * 25 * 1440
        settled, left, _ = settle(coupling, keep, factoring, couple)
        assert [one.path for one in settled.graph.factored] == ["strided"] * pays
        saved = 25 * (1440 - 132 * 10) if pays else 0
        assert cost(settled, left).macs == cost(couple(graph_of_layers())).macs - saved
        more = 132 * 10 + 10 + 12 - (1440 + 12) if pays else 0
        assert (
            cost(settled, left).params == cost(couple(graph_of_layers())).params + more == cost(coupling, keep).params
        )


def test_scores_of_widths_are_those_of_the_dense_model() -> None:
    factoring, start = factored(with_data=True), couple(graph_of_layers())
    coupling = couple(factoring.graph)
    scores = [torch.rand(group.width, dtype=torch.float64) for group in start.groups]
    with_ranks = scores_with_ranks(coupling, factoring, start, scores)
    ranks = find_rank_groups(coupling)
    widths = [score for number, score in enumerate(with_ranks) if number not in ranks]
    assert all(torch.equal(a, b) for a, b in zip(widths, scores, strict=True))
    for number, (layer, _) in ranks.items():
        lost = factoring.written[layer].split.lost[0]
        assert float(with_ranks[number].max()) == pytest.approx(1)
        assert torch.allclose(with_ranks[number].sort().values[0], lost[-1], atol=1e-9)


@pytest.mark.parametrize("name", [n for n, row in NETS.items() if row.free > 0][::12])
def test_micro_nets_with_factored_layers_are_the_same(name: str) -> None:
    """Whatever stands around a layer; and widths go as they did."""
    graph = graph_of(name)
    try:
        factoring = factor(graph, tuple(FORMS))
    except InputError:
        return
    prove_same(factoring, [graph.inputs])
    coupling, dense = couple(factoring.graph), couple(graph)
    assert cost(coupling).macs == cost(dense).macs
    ranks = find_rank_groups(coupling)
    widths = [group.width for number, group in enumerate(coupling.groups) if number not in ranks]
    assert widths == [group.width for group in dense.groups]


def test_no_layer_can_be_factored() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3))

    with pytest.raises(InputError, match=r"no layer can be factored as svd, channel: it takes linear layers"):
        factor(capture(Depthwise().eval(), (torch.randn(2, 4, 5, 5),)), ("svd", "channel"))
    with pytest.raises(InputError, match="that --keep does not name"):
        factor(graph_of_layers(), tuple(FORMS), keep=("*",))


def test_kept_layers_are_left_alone() -> None:
    factoring = factor(graph_of_layers(), tuple(FORMS), keep=("wide", "bare"))
    assert {one.layer.weight for one in factoring.written} == {
        f"{n}.weight" for n in ("stem", "strided", "line", "head")
    }
    assert np.all([name in factoring.graph.tensors for name in ("wide.weight", "bare")])
