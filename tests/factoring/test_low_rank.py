"""``--low-rank`` from the options to the files."""

from __future__ import annotations

import copy
import functools
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_model import restore, slim
from slim_model.errors import InputError
from slim_model.export.torch_files import save
from slim_model.factoring.forms import FORMS
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.own_module import SmallModule, make_small_module
from slim_model.recipe import Recipe
from small_nets import HardCoded, Residual, error, images, trained

OPTIONS: dict[str, Any] = {"low_rank": True, "multiple_of": 1}


def recipe(**options: Any) -> Recipe:
    return Recipe.of(**OPTIONS | options)


class Lines(nn.Module):
    """Linear layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(768, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


def net_for(form: str) -> type[nn.Module]:
    return Lines if form == "svd" else Residual


@functools.cache
def in_form(form: str, net: type[nn.Module]) -> tuple[nn.Module, Compiled, SmallModule]:
    """With widths and ranks of this form alone."""
    model = trained(net(), seed=3)
    result = compile_model(model, (images(),), recipe(of="macs", rank_forms=(form,)))
    return model, result, make_small_module(model, result.small)


@functools.cache
def compiled(net: type[nn.Module], *, widths: bool) -> tuple[nn.Module, Compiled, SmallModule]:
    model = trained(net(), seed=3)
    result = compile_model(model, (images(),), recipe(of="macs", widths=widths))
    return model, result, make_small_module(model, result.small)


@pytest.mark.parametrize("net", [Residual, HardCoded])
@pytest.mark.parametrize("widths", [False, True])
def test_half_of_the_multiply_adds(net: type[nn.Module], widths: bool) -> None:
    model, result, small = compiled(net, widths=widths)
    assert 0.49 < result.slim_cost.macs / result.dense_cost.macs <= 0.5
    assert result.proof.factored_max_rel_error is not None
    assert result.proof.factored_max_rel_error < 1e-4
    assert result.proof.masked_max_rel_error < 1e-4
    assert result.small.factored
    # a fixed size is that of widths, which ranks leave as they are
    assert small.own == (net is Residual or not widths)
    x = images(7)
    assert error(small.module(x), result.small.run((x,))[0]) < 1e-5
    counted = sum(parameter.numel() for parameter in small.module.parameters())
    assert counted == result.slim_cost.params
    if not widths:
        shapes = {name: p.shape for name, p in model.named_parameters() if "norm" in name or "bn" in name}
        assert shapes == {name: p.shape for name, p in small.module.named_parameters() if name in shapes}


def test_pairs_are_layers_of_torch() -> None:
    _, result, small = compiled(Residual, widths=False)
    for layer in result.small.factored:
        row = small.module.get_submodule(layer.path)
        assert isinstance(row, nn.Sequential)
        assert all(isinstance(one, nn.Conv2d | nn.Linear) for one in row)
        pairs = itertools.pairwise(parameter for name, parameter in row.named_parameters() if "weight" in name)
        assert all(before.shape[0] == after.shape[1] for before, after in pairs)
        assert all(parameter.requires_grad for parameter in row.parameters())


def test_the_report_tells_ranks_from_widths() -> None:
    report = slim(trained(Residual(), seed=3), images(), of="macs", widths=False, **OPTIONS).report
    ranks = [group for group in report.groups if "factored" in group]
    assert ranks
    assert all(group["name"].startswith(f"{group['factored']} (rank") for group in ranks)
    assert {group["form"] for group in ranks} <= set(FORMS)
    assert all(group["macs"] < group["macs_whole"] for group in ranks)
    saved = {group["factored"]: group["macs_whole"] - group["macs"] for group in ranks}  # a layer may have two
    assert sum(saved.values()) == report.dense["macs"] - report.slim["macs"]
    assert report.channels["removed_share"] == 0
    assert all(group["before"] == group["after"] for group in report.groups if "factored" not in group)


def test_a_ratio_halves_the_layers() -> None:
    """Without a price, a rank is left the share of its break-even."""
    report = slim(trained(Residual(), seed=3), images(), ratio=0.5, widths=False, **OPTIONS).report
    assert 0.4 < report.slim["macs"] / report.dense["macs"] < 0.6


def test_ranks_and_widths_with_data() -> None:
    """Scores of data, an allocation that measures, and recovery, which fits factors as it fits layers."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, 16, 16, generator=generator) for _ in range(4)]
    chosen = {"criterion": "reconstruction", "allocate": "damage", "recover": "full", "of": "macs", "data": batches}
    result = slim(trained(Residual(), seed=3), images(), **OPTIONS | chosen)
    did = {step["name"]: step["did"] for step in result.report.steps}
    assert did["full"]["error_after"] < did["affine"]["error_before"]
    assert result.report.slim["macs"] <= result.report.dense["macs"] / 2


@pytest.mark.parametrize("form", FORMS)
def test_each_form_alone(form: str) -> None:
    """Its pairs are layers of torch that compute what the graph does, cost what was counted, and are trained on."""
    _, result, small = in_form(form, net_for(form))
    assert 0.49 < result.slim_cost.macs / result.dense_cost.macs <= 0.5
    assert {layer.form for layer in result.small.factored} == {form}
    assert small.own
    x = images(7)
    assert error(small.module(x), result.small.run((x,))[0]) < 1e-5
    assert sum(parameter.numel() for parameter in small.module.parameters()) == result.slim_cost.params
    for layer in result.small.factored:
        row = small.module.get_submodule(layer.path)
        assert isinstance(row, nn.Sequential)
        assert len(row) == len(layer.factors)
        for one in row:
            assert type(one).__module__.startswith("torch.nn")
            assert not isinstance(one, nn.Conv2d) or one.in_channels == one.weight.shape[1] * one.groups
    module = copy.deepcopy(small.module).train()
    F.cross_entropy(module(images(8)), torch.arange(8) % 5).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_saved(form: str, tmp_path: Path) -> None:
    """As weights that go back into a new model, as an archive, and as the module."""
    _, result, small = in_form(form, net_for(form))
    x, removal = images(3), result.removal(recipe(of="macs", rank_forms=(form,)))
    expected = result.small.run((x,))[0]
    for ending in ("safetensors", "pt2", "pt"):
        save(result.small, small, tmp_path / f"small.{ending}", removal)
    assert error(expected, restore(net_for(form)(), tmp_path / "small.safetensors")(x)) < 1e-5
    assert error(expected, torch.export.load(tmp_path / "small.pt2").module()(x)) < 1e-5
    assert error(expected, torch.load(tmp_path / "small.pt", weights_only=False)(x)) < 1e-5


def test_terms_of_each_input_go_back_into_a_traced_graph(tmp_path: Path) -> None:
    _, result, small = in_form("decoupled", HardCoded)
    assert not small.own
    save(result.small, small, tmp_path / "small.safetensors", result.removal(recipe(of="macs")))
    x = images(3)
    assert error(restore(HardCoded(), tmp_path / "small.safetensors")(x), result.small.run((x,))[0]) < 1e-5


@pytest.mark.parametrize("net", [Residual, HardCoded])
def test_weights_go_back_into_a_new_model(net: type[nn.Module], tmp_path: Path) -> None:
    _, result, small = compiled(net, widths=True)
    path = tmp_path / "small.safetensors"
    save(result.small, small, path, result.removal(recipe(of="macs")))
    again = restore(net(), path)
    x = images(3)
    assert error(again(x), result.small.run((x,))[0]) < 1e-5
    if net is Residual:
        with pytest.raises(InputError, match="does not belong to this model"):
            restore(nn.Sequential(nn.Linear(3, 3)), path)


def test_an_archive_loads_without_us(tmp_path: Path) -> None:
    _, result, small = compiled(Residual, widths=False)
    path, given, got = tmp_path / "small.pt2", tmp_path / "x.pt", tmp_path / "y.pt"
    save(result.small, small, path, result.removal(recipe(of="macs")))
    torch.save(images(5), given)
    code = "import sys, torch; m = torch.export.load(sys.argv[1]).module(); "
    code += "torch.save(m(torch.load(sys.argv[2])), sys.argv[3])"
    subprocess.run([sys.executable, "-I", "-c", code, *map(str, (path, given, got))], check=True)
    assert error(torch.load(got), result.small.run((images(5),))[0]) < 1e-5


def test_a_small_model_with_ranks_is_trained_on() -> None:
    _, _, small = compiled(Residual, widths=False)
    module = small.module.train()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    torch.optim.SGD(module.parameters(), 0.1).zero_grad()
    F.cross_entropy(module(images(8)), torch.arange(8) % 5).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert len(before) == len(list(module.parameters()))
    module.zero_grad()
    module.eval()


class Fused(nn.Module):
    """Attention whose projections have no layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0]).mean(1)


def test_projections_without_a_layer_of_their_own() -> None:
    """They are factored in the graph; then the graph is what is handed out."""
    torch.manual_seed(0)
    result = slim(Fused(), torch.randn(2, 5, 16), ratio=0.5, widths=False, **OPTIONS)
    assert result.report.slim["macs"] < 0.7 * result.report.dense["macs"]
    assert any("traced graph" in note for note in result.report.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank_forms": ("cp",), "low_rank": True},
            "no form of low rank is called 'cp'. There are: svd, channel, spatial, decoupled, tucker",
        ),
        ({"rank_forms": ("svd",)}, "--rank-forms says how --low-rank writes layers; add --low-rank."),
        ({"widths": False}, "without widths nothing is left to remove; --no-widths goes with --low-rank."),
        ({"low_rank": True, "iterations": 2}, "--low-rank does not go with iterations 2; ranks go in one round."),
        ({"low_rank": True, "engine": "torch-pruning"}, "--low-rank does not go with engine 'torch-pruning'"),
        ({"low_rank": True, "attention": "both"}, "--low-rank does not go with attention 'both'"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.of(**options)
