"""Torch-Pruning both ways: our criteria in its pruners, its pruner behind our proof."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

from slim_model import CRITERIA, InputError, ProofError, slim
from slim_model.budget.torch_pruning import Importance


class Block(nn.Module):
    """A stem, a residual block with a depthwise convolution, a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.bn2 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.depth, self.bn3 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.down, self.bn4 = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        y = F.relu(self.bn3(self.depth(F.relu(self.bn2(self.up(x))))))
        x = F.relu(x + self.bn4(self.down(y)))
        return self.head(F.max_pool2d(x, 2).flatten(1))


def model() -> Block:
    net = Block().eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return net


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 3, 8, 8, generator=generator), torch.randint(0, 5, (40,), generator=generator)


EXAMPLE = torch.randn(2, 3, 8, 8)


# -- our criteria in its pruners ------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_in_its_pruner(criterion: str) -> None:
    net = model()
    importance = Importance(criterion, net, EXAMPLE, data=data())
    pruner = tp.pruner.BasePruner(net, EXAMPLE, importance=importance, pruning_ratio=0.5, ignored_layers=[net.head])
    pruner.step()
    assert (net.stem.out_channels, net.depth.out_channels, net.head.in_features) == (4, 6, 4 * 16)
    assert net(EXAMPLE).shape == (2, 5)


def test_it_is_one_of_its_importances() -> None:
    assert isinstance(Importance("l1", model(), EXAMPLE), tp.importance.Importance)


def test_scores_are_ours_at_the_indices_asked_for() -> None:
    net = model()
    graph = tp.DependencyGraph().build_dependency(net, EXAMPLE)
    importance = Importance("l1", net, EXAMPLE, normalise=False)
    group = graph.get_pruning_group(net.up, tp.prune_conv_out_channels, idxs=[7, 2, 4])
    wanted = [net.up.weight[i].abs().sum().item() + net.depth.weight[i].abs().sum().item() for i in (7, 2, 4)]
    assert importance(group).tolist() == pytest.approx(wanted, rel=1e-5)


def test_what_it_keeps_is_what_we_keep() -> None:
    """With the same widths, both keep the same filters."""
    ours = slim(model(), EXAMPLE, criterion="apoz", data=data(), ratio=0.5, multiple_of=1)
    net = model()
    dense = copy.deepcopy(net)
    pruner = tp.pruner.BasePruner(
        net, EXAMPLE, importance=Importance("apoz", net, EXAMPLE, data=data()), pruning_ratio=0.5,
        ignored_layers=[net.head],
    )  # fmt: skip
    pruner.step()
    (up,) = [np.array(g["kept"]) for g in ours.report.groups if g["name"] == "up"]
    (kept_inputs,) = [np.array(g["kept"]) for g in ours.report.groups if g["name"] == "stem"]
    assert torch.equal(net.up.weight, dense.up.weight[up][:, kept_inputs])


def test_scores_follow_the_model_as_it_shrinks() -> None:
    net = model()
    importance = Importance("variance", net, EXAMPLE, data=data(), samples=20)
    pruner = tp.pruner.BasePruner(
        net, EXAMPLE, importance=importance, pruning_ratio=0.5, iterative_steps=2, ignored_layers=[net.head]
    )
    pruner.step()
    assert net.stem.out_channels == 6
    pruner.step()
    assert net.stem.out_channels == 4


def test_global_pruning_compares_normalised_groups() -> None:
    net = model()
    importance = Importance("l2", net, EXAMPLE)
    graph = tp.DependencyGraph().build_dependency(net, EXAMPLE)
    for group in graph.get_all_groups(ignored_layers=[net.head]):
        assert importance(group).mean().item() == pytest.approx(1, rel=1e-5)
    pruner = tp.pruner.BasePruner(
        net, EXAMPLE, importance=importance, pruning_ratio=0.4, global_pruning=True, ignored_layers=[net.head]
    )
    pruner.step()
    assert net(EXAMPLE).shape == (2, 5)
    assert net.stem.out_channels + net.depth.out_channels < 20


def test_a_group_that_must_stay_is_refused_with_the_remedy() -> None:
    net = model()
    graph = tp.DependencyGraph().build_dependency(net, EXAMPLE)
    group = graph.get_pruning_group(net.head, tp.prune_linear_out_channels, idxs=[0, 1])
    with pytest.raises(InputError, match=r"group of 'head'.*ignored_layers"):
        Importance("l1", net, EXAMPLE)(group)
    for other in graph.get_all_groups(ignored_layers=[net.head]):
        assert Importance("l1", net, EXAMPLE)(other) is not None


def test_a_criterion_without_data_says_so_here_too() -> None:
    net = model()
    graph = tp.DependencyGraph().build_dependency(net, EXAMPLE)
    group = graph.get_pruning_group(net.up, tp.prune_conv_out_channels, idxs=[0])
    with pytest.raises(InputError, match="'apoz' needs data"):
        Importance("apoz", net, EXAMPLE)(group)


# -- its pruner behind our proof ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_its_pruner_is_proven_and_reported(ratio: float, scope: str) -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    result = slim(net, EXAMPLE, criterion="l1", ratio=ratio, scope=scope, engine="torch-pruning", multiple_of=1)
    assert result.report.proof["masked_max_rel_error"] <= 1e-4
    assert result.report.recipe["budget"]["engine"] == "torch-pruning"
    assert result.report.slim["params"] < result.report.dense["params"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    if scope == "local":
        ours = slim(net, EXAMPLE, criterion="l1", ratio=ratio, multiple_of=1)
        assert np.array_equal(ours.plan.keep, result.plan.keep)


def test_a_torchvision_model_passes() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    result = slim(net, torch.randn(2, 3, 32, 32), ratio=0.5, engine="torch-pruning", multiple_of=1)
    assert result.report.slim["params"] < 0.3 * result.report.dense["params"]


def test_layers_to_keep_are_left_alone() -> None:
    result = slim(model(), EXAMPLE, engine="torch-pruning", keep=("up*",), multiple_of=1)
    assert "up" not in [g["name"] for g in result.report.groups]
    assert result.module.up.out_channels == 12


class Rolled(nn.Module):
    """Torch-Pruning takes roll for an elementwise operator, and cuts the wrong channels of the next layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.roll(F.relu(self.a(x)), 3, dims=1))


def test_a_wrong_result_is_refused() -> None:
    with pytest.raises(ProofError, match=r"Torch-Pruning .* gave no right result: .*Nothing was written"):
        slim(Rolled().eval(), EXAMPLE, engine="torch-pruning", multiple_of=1)
    assert slim(Rolled().eval(), EXAMPLE, multiple_of=1).plan.widths == ((8, 4),)


class Flattened(nn.Module):
    """A forward with sizes of its own: its module cannot run once it is small."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).view(-1, 8 * 64))


def test_a_module_that_does_not_run_is_refused() -> None:
    with pytest.raises(ProofError, match="its module does not run"):
        slim(Flattened().eval(), EXAMPLE, engine="torch-pruning", multiple_of=1)


def test_a_pruner_that_fails_is_refused_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("no such layer")

    monkeypatch.setattr(tp.pruner, "BasePruner", fail)
    with pytest.raises(ProofError, match=r"it failed with KeyError.*no such layer"):
        slim(model(), EXAMPLE, engine="torch-pruning")


def test_an_unknown_engine_is_explained() -> None:
    with pytest.raises(InputError, match="engine 'nni' is unknown; it is one of slim, torch-pruning"):
        slim(model(), EXAMPLE, engine="nni")
