"""A mean, a spread or a maximum over channels counts channels that are gone as zeros; norms do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slim_model
from slim_model.api import Slimmed
from slim_model.coupling.couple import couple
from slim_model.coupling.dense_counts import keep_dense_counts
from slim_model.graph.trace import trace
from slim_model.simplifying.simplify import simplify

Statistic = Callable[[Tensor], Tensor]
PLAIN: dict[str, Statistic] = {
    "mean": lambda x: x.mean(1, keepdim=True),
    "mean, no axis kept": lambda x: x.mean(1).unsqueeze(1),
    "mean over channels and places": lambda x: x.mean((1, 2, 3), keepdim=True),
    "mean by torch.mean": lambda x: torch.mean(x, dim=-3, keepdim=True),
    "mean of the flattened map": lambda x: x.flatten(1).mean(1)[:, None, None, None],
    "var": lambda x: x.var(1, keepdim=True),
    "var, biased": lambda x: x.var(1, unbiased=False, keepdim=True),
    "var, correction 2": lambda x: x.var(1, correction=2, keepdim=True),
    "var over channels and places": lambda x: x.var((1, 2), keepdim=True),
    "std": lambda x: x.std(1, keepdim=True),
    "std, no axis kept": lambda x: x.std(1).unsqueeze(1),
    "var_mean": lambda x: sum(torch.var_mean(x, 1, keepdim=True)),
    "std_mean": lambda x: torch.cat(torch.std_mean(x, 1, keepdim=True), 1).sum(1, keepdim=True),
    "far from zero": lambda x: (x + 100 * (x != 0)).std(1, keepdim=True) / 100,
    "amax": lambda x: (-x).amax(1, keepdim=True),
    "amin": lambda x: x.amin(1, keepdim=True),
    "max": lambda x: torch.max(x, 1, keepdim=True)[0],
    "min": lambda x: torch.min(x, 1, keepdim=True).values,
    "max, negative where alive": lambda x: torch.where(x == 0, x, -x - 1).amax(1, keepdim=True),
    "mean and max (CBAM)": lambda x: x.mean(1, keepdim=True) + x.max(1, keepdim=True)[0],
}
NORMS: dict[str, Statistic] = {
    "layer norm by hand": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt(),
    "layer norm by mean of squares": lambda x: _by_squares(x),
    "rms norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "divided by its mean (GRN)": lambda x: x / (x.mean(1, keepdim=True) + 1e-6),
    "centred": lambda x: x - x.mean(1, keepdim=True),
    "LayerNorm": lambda x: F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1),
    "GroupNorm": lambda x: F.group_norm(x, 1),
}  # fmt: skip


def _by_squares(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-5)


class Gate(nn.Module):
    """A gate of one number for each place, from a statistic over channels."""

    def __init__(self, statistic: Statistic) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(1, 1, 1), nn.Conv2d(16, 4, 3)
        self.statistic = statistic

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x * torch.sigmoid(8 * self.gate(self.statistic(x))))


class Normed(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.statistic(self.a(x)))


def image(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 9, 9, generator=torch.Generator().manual_seed(batch))


def without_dead(model: Gate) -> Slimmed:
    """Half of the channels are dead beforehand, and just these are removed."""
    with torch.no_grad():
        model.a.weight[1::2] = 0
        model.a.bias[1::2] = 0
    alive = lambda slices: (torch.arange(slices.width) % 2 == 0).float()  # noqa: E731
    return slim_model.slim(model, image(), ratio=0.5, multiple_of=1, criterion=alive, keep=("b",))


@pytest.mark.parametrize("name", PLAIN)
def test_removing_dead_channels_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = Gate(PLAIN[name]).eval()
    small, _, report = without_dead(model)
    assert report.groups[0]["after"] == 8
    for batch in (1, 4, 7):
        expected, got = model(image(batch)), small(image(batch))
        assert float((expected - got).abs().max() / expected.abs().max()) < 1e-5
    assert not report.norms


@pytest.mark.parametrize("name", NORMS)
def test_norms_keep_their_definition_and_are_named(name: str) -> None:
    torch.manual_seed(0)
    model = Normed(NORMS[name]).eval()
    small, _, report = without_dead(model)
    assert report.norms
    assert all("test_dense_counts.py" in norm["where"] for norm in report.norms)
    with torch.no_grad():  # as PyTorch takes them over what is left
        expected = model.b(_zeros_between(model.statistic(model.a(image())[:, ::2])))
    assert torch.allclose(small(image()), expected, rtol=1e-4, atol=1e-5)


def _zeros_between(x: Tensor) -> Tensor:
    return torch.stack([x, torch.zeros_like(x)], 2).flatten(1, 2)


def test_a_norm_by_hand_stays_in_the_class_of_its_owner() -> None:
    torch.manual_seed(0)
    model = Normed(NORMS["rms norm by hand"]).eval()
    assert type(slim_model.slim(model, image(), ratio=0.5, multiple_of=1).module) is Normed


def test_whole_groups_of_a_group_norm_are_no_fewer_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(8, 16), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    report = slim_model.slim(model, image(), ratio=0.5, multiple_of=1).report
    assert report.groups[0]["after"] == 4  # pairs
    assert not report.norms


def test_a_maximum_that_is_fixed_for_another_reason_stays_as_it_is() -> None:
    class Sorted(Gate):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return self.b(x.sort(1)[0] * x.amax(1, keepdim=True))

    graph = simplify(trace(Sorted(PLAIN["amax"]).eval(), (image(),)))
    assert keep_dense_counts(graph) is graph


def test_a_place_of_the_maximum_is_a_reason_to_keep_channels() -> None:
    class Place(Gate):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            highest, place = x.max(1, keepdim=True)
            return self.b(x * highest) + place[..., :5, :5]

    coupling = couple(keep_dense_counts(simplify(trace(Place(PLAIN["amax"]).eval(), (image(),)))))
    assert "aten.max.dim" in {pin.op for pin in coupling.pinned}


def test_spatial_means_stay_means() -> None:
    class Pooled(Gate):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))).mean((2, 3))

    graph = simplify(trace(Pooled(PLAIN["mean"]).eval(), (image(),)))
    assert keep_dense_counts(graph) is graph


@pytest.mark.parametrize("name", ["mean", "std", "amax", "mean and max (CBAM)"])
def test_data_ranks_and_recovers_beside_a_statistic(name: str) -> None:
    torch.manual_seed(0)
    data = [image(8)]
    report = slim_model.slim(
        Gate(PLAIN[name]).eval(), image(), ratio=0.5, multiple_of=1, criterion="apoz", data=data, recover="affine"
    ).report
    assert report.groups[0]["after"] == 8
    assert report.proof["masked_max_rel_error"] < 1e-4
