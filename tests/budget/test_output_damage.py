"""What the outputs lose with each channel, comparable between groups; and what filters alone say of channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slim_model import Recipe
from slim_model.budget.allocations import allocation_of
from slim_model.budget.limit import plan_under_limit
from slim_model.budget.output_damage import measure_output_damage
from slim_model.cost.counted import CostModel
from slim_model.cost.prices import price_of
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.data.open_data import open_data
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.ranking.evidence.rectified_normal import expected_products
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify
from small_nets import Residual, error, images, trained


def coupled(model: nn.Module, x: Tensor) -> Coupling:
    return couple(simplify(trace(model.eval(), (x[:2],))))


def test_a_layer_that_outputs_hardly_feel_is_cut_first() -> None:
    """Two branches alike, of which one counts a hundredth: errors at the next layer are equal, what is lost is not."""
    torch.manual_seed(0)
    net, x = Branches(0.01), torch.randn(200, 6)
    coupling = coupled(net, x)
    data = open_data([x], (x[:2],))
    scores = score(coupling, "reconstruction", data=data)
    assert torch.allclose(scores[0], scores[1], rtol=1e-6)
    loud, quiet = measure_output_damage(coupling, scores, data)
    assert float(quiet.sum()) < 1e-2 * float(loud.sum())
    meter = CostModel(coupling)
    plan = plan_under_limit(
        coupling,
        [loud, quiet],
        price_of("macs"),
        lambda keep: meter(keep).macs,
        0.6 * meter(None).macs,
        allocation=allocation_of("greedy:normalise=none,floor=0"),
    )
    (before, first), (_, second) = plan.widths
    assert second < 0.4 * before < first


class Branches(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
        self.two = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
        self.two.load_state_dict(self.one.state_dict())
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.share * self.two(x)


def test_its_order_is_that_of_the_scores() -> None:
    """What is lost adds up to the error at which half of the group is gone."""
    x = images(60)
    coupling = coupled(trained(Residual()), x)
    data = open_data([x], (x[:2],))
    scores = score(coupling, "reconstruction", data=data)
    for group, before, lost in zip(coupling.groups, scores, measure_output_damage(coupling, scores, data), strict=True):
        assert lost.shape == (group.width,)
        assert bool((lost >= 0).all())
        order = before.argsort()
        assert torch.allclose(lost[order].cumsum(0) / lost.sum(), before[order] / before.max(), atol=1e-6)


# -- without data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rectified", [True, False])
def test_expected_products_are_those_of_many_normal_inputs(rectified: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    filters, shift = torch.randn(5, 3, generator=generator), torch.randn(5, generator=generator)
    sums = torch.randn(400_000, 3, generator=generator, dtype=torch.float64) @ filters.double().T + shift
    found = sums.clamp(min=0) if rectified else sums
    mean, product = expected_products(filters, shift, rectified=rectified)
    assert torch.allclose(mean, found.mean(0), atol=0.02)
    assert torch.allclose(product, found.T @ found / len(found), atol=0.05)


def twins(norm: bool) -> nn.Sequential:
    """Channels 4 to 7 repeat 0 to 3, twice as large; the last layer reads them all."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(8, 5, 1)
    )
    with torch.no_grad():
        model[0].weight[4:] = 2 * model[0].weight[:4]
        model[0].bias[:] = 0
        if norm:
            model[1].weight[4:] = 2 * model[1].weight[:4]
            model[1].bias[:4] = torch.randn(4)
            model[1].bias[4:] = 2 * model[1].bias[:4]
            model[1].running_var[4:] = 4 * model[1].running_var[:4]
    return model.eval()


@pytest.mark.parametrize("norm", [False, True])
def test_without_data_twins_are_merged(norm: bool) -> None:
    """The kernel finds one of each pair that can go, and what it did is given to the other."""
    x = images(8)
    result = compile_model(twins(norm), (x,), Recipe.of(0.5, "kernel", multiple_of=1, recover="data-free"))
    kept = torch.from_numpy(result.plan.keep[result.coupling.groups[0].channels]).nonzero().flatten() % 4
    assert kept.sort().values.tolist() == [0, 1, 2, 3]
    plain = compile_model(twins(norm), (x,), Recipe.of(0.5, "kernel", multiple_of=1))
    (expected,) = result.dense.run((x,))
    assert error(expected, plain.small.run((x,))[0]) > 0.1
    assert error(expected, result.small.run((x,))[0]) < 0.01  # the ridge


def test_without_data_less_is_lost_and_variance_is_repaired() -> None:
    """Half of all channels of a net with residual streams; inputs are what is assumed of them."""
    model, x = trained(Residual()), images(200)
    plain, merged = (
        compile_model(model, (x[:2],), Recipe.of(0.3, "kernel", multiple_of=1, recover=level))
        for level in ("none", "data-free")
    )
    (expected,) = plain.dense.run((x,))

    def off(result: Tensor) -> float:
        return float((result - expected).square().sum())

    assert off(merged.small.run((x,))[0]) < off(plain.small.run((x,))[0])
    name = "block1.bn1.running_var"
    assert bool((merged.small.tensors[name] <= plain.small.tensors[name]).all())
    assert bool((merged.small.tensors[name] < plain.small.tensors[name]).any())
    assert [step.name for step in merged.steps] == ["dense", "removal", "data-free"]
    assert merged.steps[2].did["error_after"] is None  # nothing to judge by
