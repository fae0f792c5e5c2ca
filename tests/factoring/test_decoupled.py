"""A kernel as terms of each input alone: ranks go in every input, and an input with all of its terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_factor import data, graph_of_layers
from torch import nn
from torch.nn import functional as F

from slim_model.cost.break_even import ranks_among
from slim_model.cost.counted import CostModel, by_macs, cost
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.coupling.rank_groups import find_rank_groups
from slim_model.cutting.cut import cut_of, positions_left
from slim_model.cutting.shrink_graph import shrink
from slim_model.data.open_data import open_data
from slim_model.factoring.factor import factor
from slim_model.factoring.prove_same import prove_same
from slim_model.proof.capture import capture
from slim_model.proof.prove import prove


def coupled() -> Coupling:
    return couple(factor(graph_of_layers(), ("decoupled",)).graph)


@pytest.mark.parametrize("with_data", [False, True])
def test_kernels_of_each_input(with_data: bool) -> None:
    """Ranks: the lesser of 9 taps and 8 outputs, 15 taps and 12 outputs, 3 taps and 10 outputs; pictures have 3
    inputs."""
    factoring = factor(graph_of_layers(), ("decoupled",), data=data() if with_data else None)
    shapes = {one.path: [factor.shape for factor in one.factors] for one in factoring.graph.factored}
    assert shapes == {
        "stem": [(3 * 8, 1, 3, 3), (8, 3 * 8, 1, 1)],
        "strided": [(8 * 12, 1, 3, 5), (12, 8 * 12, 1, 1)],
        "line": [(40 * 3, 1, 3), (10, 40 * 3, 1)],
    }
    proven = prove_same(factoring, [graph_of_layers().inputs, (torch.randn(3, 3, 10, 10),)])
    assert proven.error is not None
    assert proven.error < 1e-5
    dense = couple(graph_of_layers())
    assert cost(couple(factoring.graph)) == cost(dense)


def test_shares_by_hand() -> None:
    """One input has terms of 9 and 1, the other one of 4 and none."""
    model = nn.Sequential(nn.Conv2d(2, 2, (1, 2), bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[3.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])[:, :, None])
    (one,) = factor(capture(model.eval(), (torch.randn(2, 2, 3, 5),)), ("decoupled",)).written
    assert one.split.lost[0].tolist() == pytest.approx([13 / 14, 1 / 14])


def test_what_goes_with_terms_is_what_was_told() -> None:
    """Where a single input varies, nothing is left out of the account: neighbours in a patch are alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)).eval()
    x = torch.randn(200, 2, 8, 8).cumsum(2)
    x[:, 1] = 1.0
    opened = open_data([x], (x[:2],))
    assert opened is not None
    (one,) = factor(capture(model, (x[:2],)), ("decoupled",), data=opened).written
    depthwise, across = one.split.parts
    fit = x[torch.arange(200) % 5 != 4]
    whole = model[0](fit)
    for rank in range(1, 6):
        terms = [input * 6 + term for input in (0, 1) for term in range(rank)]
        inner = F.conv2d(fit, depthwise.weight[terms], stride=2, groups=2)
        error = whole - F.conv2d(inner, across.weight[:, terms], across.bias)
        spreads = [(e - e.mean((0, 2, 3), keepdim=True)).square().sum() for e in (error, whole)]
        assert float(spreads[0] / spreads[1]) == pytest.approx(float(one.split.lost[0][rank:].sum()), rel=1e-3)


def five_inputs_and_three_terms() -> tuple[Coupling, dict[str, int], np.ndarray]:
    """Of ``strided``: the coupling, the numbers of rank groups by their layer, and the plan."""
    coupling = coupled()
    of_layer = {coupling.graph.factored[axis.layer].path: group for group, axis in find_rank_groups(coupling).items()}
    (stem,) = (number for number, group in enumerate(coupling.groups) if group.name == "stem")
    keep = coupling.keep_all()
    keep[coupling.groups[stem].channels[[1, 4, 6]]] = False
    keep[coupling.groups[of_layer["strided"]].channels[3:]] = False
    return coupling, of_layer, keep


def test_a_term_costs_what_it_takes_with_the_inputs_that_are_left() -> None:
    """25 places; of 5 inputs and 3 terms: 15 kernels of 15 taps, then 15 x 12; the one layer has 12 x 5 x 15."""
    coupling, of_layer, keep = five_inputs_and_three_terms()
    product = CostModel(coupling).products(keep)[1]
    assert [one.macs for one in product.factors] == [2 * 25 * 15 * 15, 2 * 25 * 15 * 12]
    assert product.whole.macs == 2 * 25 * 12 * 5 * 15
    assert by_macs(product)
    ranks = ranks_among(coupling)
    assert ranks is not None
    assert ranks.break_even[of_layer["strided"]] == pytest.approx(12 * 15 / (15 + 12))
    assert ranks.break_even[of_layer["stem"]] == pytest.approx(8 * 9 / (9 + 8))


def test_terms_go_in_every_input_and_with_it() -> None:
    coupling, _, keep = five_inputs_and_three_terms()
    left = [input * 12 + term for input in (0, 2, 3, 5, 7) for term in range(3)]
    positions = positions_left(coupling, keep)
    assert positions["strided.0.weight", 0].tolist() == positions["strided.1.weight", 1].tolist() == left
    small, replay = shrink(coupling, keep)
    assert small.tensors["strided.0.weight"].shape == (15, 1, 3, 5)
    assert small.tensors["strided.1.weight"].shape == (12, 15, 1, 1)
    proof = prove(coupling.graph, small, cut_of(coupling, keep), replay, [graph_of_layers().inputs])
    assert proof.masked_max_rel_error < 1e-5


def test_one_input_of_many_is_left() -> None:
    """Then its convolution is no longer a grouped one."""
    coupling = coupled()
    (stem,) = (number for number, group in enumerate(coupling.groups) if group.name == "stem")
    keep = coupling.keep_all()
    keep[coupling.groups[stem].channels[1:]] = False
    small, replay = shrink(coupling, keep)
    assert small.tensors["strided.0.weight"].shape == (12, 1, 3, 5)
    proof = prove(coupling.graph, small, cut_of(coupling, keep), replay, [graph_of_layers().inputs])
    assert proof.masked_max_rel_error < 1e-5
