"""Weights that follow from parameters alone are computed once, and are plain in the small module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, remove_weight_norm

import slim_model
from slim_model.api import Slimmed
from slim_model.coupling.couple import couple
from slim_model.export.torch_files import restore, save
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.reporting.report import make_report
from slim_model.simplifying.simplify import simplify

Wrap = Callable[[nn.Linear], nn.Module]


class Standardised(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


class Rounded(nn.Module):
    """Fake quantisation by each row's largest value."""

    def forward(self, w: Tensor) -> Tensor:
        step = w.detach().abs().amax(1, keepdim=True) / 127
        return torch.round(w / step) * step


class FakeQuantised(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        step = w.detach().abs().max() / 127
        return torch.fake_quantize_per_tensor_affine(w, step, torch.zeros((), dtype=torch.int32), -128, 127)


class StandardisedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, Standardised()(self.weight), self.bias)


class LowRank(nn.Linear):
    """A pair of factors beside the weight (Hu 2021), merged in the forward."""

    def __init__(self) -> None:
        super().__init__(32, 32)
        self.down, self.up = nn.Parameter(torch.randn(2, 32)), nn.Parameter(torch.randn(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * self.up @ self.down, self.bias)


def _parametrized(rule: Callable[[], nn.Module]) -> Wrap:
    return lambda layer: parametrize.register_parametrization(layer, "weight", rule())


def _quiet(wrap: Callable[[nn.Linear], nn.Module]) -> Wrap:
    def wrapped(layer: nn.Linear) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return wrap(layer)

    return wrapped


def _pruned(layer: nn.Linear) -> nn.Module:
    prune.ln_structured(layer, "weight", 0.25, 2, 0)
    prune.random_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(layer, "bias", 0.3)
    return layer


WRAPS: dict[str, Wrap] = {
    "weight_norm by hook": _quiet(nn.utils.weight_norm),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm by hook": _quiet(nn.utils.spectral_norm),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "symmetric": _parametrized(Symmetric),
    "standardised": _parametrized(Standardised),
    "rounded": _parametrized(Rounded),
    "fake quantised": _parametrized(FakeQuantised),
    "two in turn": lambda layer: _parametrized(Rounded)(parametrizations.weight_norm(layer)),  # type: ignore[arg-type]
    "pruned before": _pruned,
    "class of its own": lambda _: StandardisedLinear(32, 32),
    "low rank, merged": lambda _: LowRank(),
}


def built(wrap: Wrap) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), wrap(nn.Linear(32, 32)), nn.ReLU(), nn.Linear(32, 4)).eval()


def x(batch: int = 5) -> Tensor:
    return torch.randn(batch, 8, generator=torch.Generator().manual_seed(1))


def graph_of(model: nn.Module, *inputs: Tensor) -> Graph:
    return simplify(trace(model.eval(), inputs))


def slimmed(model: nn.Module, **options: object) -> Slimmed:
    return slim_model.slim(model, x(), ratio=0.5, multiple_of=1, **options)


class Merged(nn.Module):
    """A low-rank pair that forward adds to a weight, both of whose sides are outputs; found by scripts/fuzz."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.weight, self.head = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 16)
        self.up, self.down, self.leave = (
            nn.Parameter(torch.randn(8, 2)),
            nn.Parameter(torch.randn(2, 8)),
            nn.Linear(16, 4),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        entered = self.enter(x)
        mixed = F.linear(entered, self.weight + 0.5 * self.up @ self.down)
        return entered, mixed, self.leave(torch.relu(self.head(mixed)))


def test_a_class_that_computes_a_weight_is_said_to() -> None:
    torch.manual_seed(0)
    found = slimmed(Merged().eval())
    assert type(found.module) is Merged
    assert found.module.head.out_features == 8
    assert any("its own class still computes them" in note for note in found.report.warnings)


@pytest.mark.parametrize("name", WRAPS)
def test_the_small_module_has_plain_layers(name: str) -> None:
    model = built(WRAPS[name])
    before, dense = {k: v.clone() for k, v in model.state_dict().items()}, model(x())
    found = slimmed(model)
    assert [type(part).__name__ for part in found.module.children()] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert found.module[2].weight.shape == (16, 16)  # type: ignore[index]
    assert found.module[2].weight.is_leaf
    assert found.module[2].weight.requires_grad
    assert {name for name, _ in found.module.named_parameters()} == {
        f"{i}.{of}" for i in (0, 2, 4) for of in ("weight", "bias")
    }
    assert any("parameters alone (2." in note for note in found.report.warnings)
    assert found.report.free_share == 1.0
    assert torch.equal(model(x()), dense)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pt2"])
def test_it_is_saved_and_comes_back(name: str, ending: str, tmp_path: Path) -> None:
    model, recipe = built(WRAPS[name]), Recipe.of(ratio=0.5, multiple_of=1)
    compiled = compile_model(model, (x(),), recipe)
    small = make_small_module(model, compiled.small)
    assert small.own
    path = tmp_path / f"small{ending}"
    save(compiled.small, small, path, compiled.removal(recipe))
    back = {
        ".safetensors": lambda: restore(built(WRAPS[name]), path),
        ".pt": lambda: torch.load(path, weights_only=False),
        ".pt2": lambda: torch.export.load(path).module(),
    }[ending]()
    assert torch.allclose(back(x()), small.module(x()), atol=1e-6)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm by hook", "low rank, merged"])
def test_it_is_fine_tuned(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(16, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)) for _ in "ab"]
    model = built(WRAPS[name])
    untrained = slimmed(model).module[2].weight  # type: ignore[index]
    trained = slimmed(model, data=data, finetune=1, recover="none").module[2].weight  # type: ignore[index]
    assert trained.shape == untrained.shape
    assert not torch.equal(trained, untrained)


def test_frozen_factors_leave_a_frozen_weight() -> None:
    model = built(WRAPS["weight_norm"])
    data = [(torch.randn(16, 8), torch.zeros(16, dtype=torch.long))]
    model[2].parametrizations.requires_grad_(False)
    found = slimmed(model, data=data, finetune=1, recover="none").module[2]  # type: ignore[index]
    assert not found.weight.requires_grad
    assert found.bias.requires_grad
    untrained = slimmed(model, data=data, recover="none").module[2]  # type: ignore[index]
    assert torch.equal(found.weight, untrained.weight)
    assert not torch.equal(found.bias, untrained.bias)


@pytest.mark.parametrize("first", ["dense", "small"])
def test_what_is_not_folded_has_a_class_of_its_own(first: str) -> None:
    """Written in place it is computed at each run. PyTorch's copies share the class that holds the parametrization."""

    class Written(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            w = w.clone()
            w.mul_(2)
            return w

    model = built(_parametrized(Written))
    small = slimmed(model).module
    one, other = (model, small) if first == "dense" else (small, model)
    parametrize.remove_parametrizations(one[2], "weight")  # type: ignore[index]
    assert parametrize.is_parametrized(other[2])  # type: ignore[index]
    assert one(x()).shape == other(x()).shape == (5, 4)


# -- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRAPS)
def test_removing_dead_channels_changes_nothing(name: str) -> None:
    def alive(slices: slim_model.ranking.criteria.Slices) -> Tensor:
        return torch.arange(slices.width) % 2 == 0

    model = built(WRAPS[name])
    with torch.no_grad():
        model[0].weight[1::2] = 0
        model[0].bias[1::2] = 0
    found = slimmed(model, criterion=lambda s: alive(s).float(), keep=("2", "4"))
    assert found.module[0].out_features == 16  # type: ignore[index]
    assert torch.allclose(found.module(x()), model(x()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hook", [True, False])
@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_the_weight_that_is_used_is_ranked(hook: bool, criterion: str) -> None:
    """Filters whose g is 0 are zero, whatever their v is."""
    torch.manual_seed(0)
    first = WRAPS["weight_norm by hook" if hook else "weight_norm"](nn.Linear(8, 32))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 4)).eval()
    gain = first.weight_g if hook else first.parametrizations.weight.original0
    with torch.no_grad():
        gain[::2] *= 10
        gain[1::2] = 0
    small = slimmed(model, criterion=criterion).module
    assert not (small[0].weight == 0).all(1).any()  # type: ignore[index]


def test_a_mask_of_the_users_own_forward_counts_in_ranking() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 32)
            self.register_buffer("mask", (torch.arange(32) % 2 == 0).float()[:, None].repeat(1, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * self.mask, self.bias)

    torch.manual_seed(0)
    small = slimmed(nn.Sequential(Masked(), nn.ReLU(), nn.Linear(32, 4)).eval()).module
    assert type(small[0]) is Masked  # type: ignore[index]  (nothing is folded: each value stands for itself)
    assert bool(small[0].mask.all())  # type: ignore[index]


# -- what is stored, and what is not --------------------------------------------------------------------------------


def test_a_weight_that_is_read_twice_is_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), parametrizations.weight_norm(nn.Linear(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.b(torch.relu(self.a(x)))))

    graph = graph_of(Twice(), x())
    assert [weight.name for weight in graph.folded] == ["b.weight"]
    assert set(graph.tensors) == {"a.weight", "a.bias", "b.bias", "b.weight"}
    assert "b.weight" in graph.parameter_names


def test_the_weight_of_a_layer_that_is_called_twice_is_stored_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            self.normed = parametrizations.spectral_norm(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.normed(torch.relu(self.normed(self.first(x)))))

    found = compile_model(Twice().eval(), (torch.randn(2, 6),), Recipe.of(ratio=0.5))
    small, *_ = make_small_module(Twice().eval(), found.small)
    assert [weight.name for weight in found.small.folded] == ["normed.weight"]
    assert found.slim_cost.params == 6 * 4 + 4 + 4 * 4 + 4 + 4 * 3 + 3 == sum(p.numel() for p in small.parameters())


def test_weights_that_share_their_factors_stay_shared() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    parametrizations.weight_norm(model[2])
    model[2].parametrizations = model[0].parametrizations
    graph = graph_of(model, x())
    assert sorted(weight.name for weight in graph.folded) in (["0.weight"], ["0.weight", "2.weight"])
    assert (
        len({t.data_ptr() for name, t in graph.tensors.items() if name.endswith("weight") and t.shape == (8, 8)}) == 1
    )


def test_moved_parameters_stay_parameters() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(8, 16), nn.Parameter(torch.randn(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.relu(self.a(x)), self.w.t().reshape(4, 16).contiguous())

    graph = graph_of(Moved(), x())
    assert not graph.folded
    assert "w" in graph.tensors


def test_a_small_network_of_parameters_alone_stays_a_network() -> None:
    """As relative positions in Swin V2: what it gives is no weight, and no statistic is taken of it."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(8, 16), nn.Linear(16, 3)
            self.register_buffer("table", torch.randn(16, 2))
            self.mlp = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x) + self.mlp(self.table).flatten())

    assert not graph_of(Positions(), x()).folded


def test_a_statistic_that_is_no_weight_is_folded() -> None:
    """Squared lengths of a codebook (VQ-VAE): a dead channel of the input leaves the codes' own lengths as they are."""

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.codes = nn.Linear(8, 16), nn.Parameter(torch.randn(5, 16))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x.square().sum(1, keepdim=True) - 2 * x @ self.codes.t() + self.codes.square().sum(1)

    model = Codes().eval()
    with torch.no_grad():
        model.a.weight[1::2] = 0
        model.a.bias[1::2] = 0
    found = slimmed(model, criterion=lambda s: (torch.arange(s.width) % 2 == 0).float())
    assert torch.allclose(found.module(x()), model(x()), rtol=1e-4, atol=1e-5)


def test_keep_finds_a_folded_weight_by_its_layer() -> None:
    graph = graph_of(built(WRAPS["weight_norm"]), x())
    assert [group.name for group in couple(graph, keep=("2",)).groups] == ["0"]


def test_two_rounds_and_recovery_work_on_folded_weights() -> None:
    model = built(WRAPS["spectral_norm"])
    recipe = Recipe.of(ratio=0.5, multiple_of=1, iterations=2, data=[torch.randn(16, 8)], recover="affine")
    compiled = compile_model(model, (x(),), recipe)
    module, own, _ = make_small_module(model, compiled.small)
    assert own
    assert type(module[2]) is nn.Linear
    assert "parameters alone" in " ".join(make_report(compiled, recipe, module_is_own=own).warnings)


def test_hooks_left_by_pytorch_are_gone() -> None:
    model = built(WRAPS["weight_norm by hook"])
    small = slimmed(model).module
    assert not small[2]._forward_pre_hooks  # type: ignore[index]
    remove_weight_norm(copy.deepcopy(model)[2])
