"""Faults of criteria that were found in other tools, and are none here."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from criteria_nets import (
    net,
    odd_net,
    raw,
    samples,
    scores_of,
)
from slim_model import CRITERIA, InputError, Slices
from slim_model.coupling.couple import couple
from slim_model.data.open_data import open_data
from slim_model.graph.trace import trace
from slim_model.ranking.evidence.gate_gradients import GateGradients
from slim_model.ranking.evidence.gather import GroupEvidence, View, gather
from slim_model.ranking.evidence.statistics import ChannelMoments
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify


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
