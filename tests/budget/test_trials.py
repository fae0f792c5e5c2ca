"""Whole plans are tried on held-out samples, and residual branches may go as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from slim_model.budget.trials.branches import find_branches, groups_of
from slim_model.coupling.attention_heads import couple_attention
from slim_model.cutting.silence import silence
from slim_model.errors import ProofError
from slim_model.export.check_onnx import check_onnx
from slim_model.export.silent_layers import leave_out_silent
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import other_batches
from slim_model.proof.capture import capture
from slim_model.proof.silenced import prove_silenced
from slim_model.recipe import Recipe

WEAK = (1, 3)
"""Blocks that add next to nothing."""


class Block(nn.Module):
    """Writes in place, as most residual nets do."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        nn.init.constant_(self.bn2.weight, scale)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(*(Block(0.02 if i in WEAK else 1.0) for i in range(5)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def _pictures(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    made = Residual()
    with torch.no_grad():
        made.train()(_pictures(64, 0))
    return made.eval()


@pytest.fixture(scope="module")
def dense(net: nn.Module) -> Graph:
    return capture(net, (_pictures(2, 1),))


@pytest.fixture(scope="module")
def compiled(net: nn.Module) -> Compiled:
    data = [_pictures(64, seed) for seed in range(5)]
    options = {"of": "macs", "ratio": 0.4, "allocate": "judged", "recover": "blocks", "samples": 320, "multiple_of": 1}
    return compile_model(net, (_pictures(2, 1),), Recipe.of(data=data, finetune=1, **options))


def test_a_branch_is_what_a_sum_can_do_without(dense: Graph) -> None:
    """The stream itself is none: all blocks write to it."""
    coupling = couple_attention(dense)
    names = [coupling.groups[branch.read].name for branch in find_branches(coupling)]
    assert names == [f"body.{i}.conv1" for i in range(5)]


def test_branches_that_add_nothing_go_first(compiled: Compiled) -> None:
    gone = [compiled.coupling.groups[number].name for number in compiled.plan.silent]
    assert gone == [f"body.{i}.conv1" for i in WEAK]
    assert compiled.met is not None
    assert compiled.met.allocate == "judged: uniform, 2 branches gone"
    assert any("body.1.conv1, body.3.conv1" in note for note in compiled.warnings)


def test_what_is_gone_costs_nothing_and_stays_gone(compiled: Compiled) -> None:
    """Recovery and training give other values to everything but what reads it."""
    assert compiled.met is not None
    assert compiled.slim_cost.macs == compiled.met.reached <= compiled.met.limit
    weights = compiled.silent_weights()
    assert weights == {f"body.{i}.conv2.weight" for i in WEAK}
    assert [step.name for step in compiled.steps][-1] == "fine-tuning"
    zero = {name for name, x in compiled.small.tensors.items() if name.endswith("weight") and not x.any()}
    assert zero == weights


def test_the_file_has_shortcuts_in_their_place(compiled: Compiled, tmp_path: Path) -> None:
    """Two convolutions for each block that stays, and the stem."""
    path = tmp_path / "small.onnx"
    to_onnx(compiled.small, path, opset=None, metadata={})
    assert sum(node.op_type == "Conv" for node in onnx.load(path).graph.node) == 2 * 3 + 1
    assert check_onnx(path, compiled.small, other_batches(compiled.small, (3,), 0)) < 1e-5
    assert sum(tensor.numel() for tensor in leave_out_silent(compiled.small).tensors.values()) < 4000


def test_layers_are_left_out_exactly(dense: Graph) -> None:
    """In a dense graph too, with whatever constants its layers have."""
    coupling = couple_attention(dense)
    quiet = silence(dense, coupling, groups_of(find_branches(coupling)[::2]))
    left = leave_out_silent(quiet)
    assert len(list(left.nodes)) < len(list(quiet.nodes))
    given = (_pictures(3, 5),)
    torch.testing.assert_close(left.run(given)[0], quiet.run(given)[0])


def test_a_transformer_can_do_without_an_mlp() -> None:
    """Its last layer is followed by dropout, and adds to tokens."""
    net = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5).eval()
    graph = capture(net, (torch.randn(2, 3, 16, 16),))
    coupling = couple_attention(graph)
    branches = find_branches(coupling)
    assert [coupling.groups[b.read].name.rpartition(".")[0] for b in branches] == [
        f"encoder.layers.encoder_layer_{i}.mlp" for i in range(2)
    ]
    quiet = silence(graph, coupling, branches[0].groups)
    left = leave_out_silent(quiet)
    assert len(left.tensors) < len(quiet.tensors)
    torch.testing.assert_close(left.run(graph.inputs)[0], quiet.run(graph.inputs)[0])


def test_a_layer_that_alone_makes_what_follows_is_not_left_out(dense: Graph) -> None:
    stem = dense.with_tensors(dense.tensors | {"stem.weight": torch.zeros_like(dense.tensors["stem.weight"])})
    assert leave_out_silent(stem).tensors.keys() == stem.tensors.keys()


def test_what_is_not_silent_is_refused(dense: Graph) -> None:
    """The proof does not take the weights of zero on trust."""
    coupling = couple_attention(dense)
    (branch, *_), keep = find_branches(coupling), coupling.keep_all()
    batches = [dense.inputs]
    assert prove_silenced(coupling, dense, keep, branch.groups, batches).tensors.keys() == dense.tensors.keys()
    group = coupling.groups[branch.read]
    other = replace(group, slices=tuple(s for s in group.slices if s.role != "reads"))
    broken = replace(coupling, groups=tuple(other if g is group else g for g in coupling.groups))
    with pytest.raises(ProofError, match=r"the model without body\.0\.conv1 could not be proven"):
        prove_silenced(broken, dense, keep, branch.groups, batches)


def test_what_whole_branches_save_too_much_narrower_layers_save(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four branches are more than is asked for, and far below the limit: three go, and the rest comes from widths."""
    monkeypatch.setattr("slim_model.budget.trials.judged.SHARES", (1.0,))
    options = {"of": "macs", "ratio": 0.62, "recover": "none", "criterion": "l1", "multiple_of": 1}
    data = [_pictures(64, seed) for seed in range(2)]
    found = compile_model(net, (_pictures(2, 1),), Recipe.of(data=data, allocate="judged", **options))
    assert found.met is not None
    assert len(found.plan.silent) == 3
    assert 0.98 * found.met.limit <= found.met.reached <= found.met.limit


def test_the_uniform_plan_is_taken_where_nothing_is_better(net: nn.Module) -> None:
    """Without a branch that may go there is one plan."""
    plain = nn.Sequential(net.stem, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    data = [_pictures(64, seed) for seed in range(2)]
    options = {"of": "macs", "ratio": 0.4, "recover": "bias", "criterion": "l1", "multiple_of": 1}
    plans = [
        compile_model(plain, (_pictures(2, 1),), Recipe.of(data=data, allocate=name, **options)).plan
        for name in ("judged", "uniform")
    ]
    assert np.array_equal(*(plan.keep for plan in plans))


def test_of_factored_layers_a_branch_goes_whole(net: nn.Module, tmp_path: Path) -> None:
    """Its last pair reads a rank; the width and the ranks ahead of it serve nothing else."""
    options = {"of": "macs", "ratio": 0.4, "recover": "none", "criterion": "l1", "multiple_of": 1, "low_rank": True}
    data = [_pictures(64, seed) for seed in range(2)]
    found = compile_model(net, (_pictures(2, 1),), Recipe.of(data=data, allocate="judged", **options))
    assert found.met is not None
    assert found.met.allocate.endswith("2 branches gone")
    gone = {found.coupling.groups[number].name for number in found.plan.silent}
    assert {f"body.{block}.conv1" for block in WEAK} <= gone
    assert all(name.startswith(("body.1.", "body.3.")) for name in gone)
    assert found.slim_cost.macs == found.met.reached <= found.met.limit
    path = tmp_path / "small.onnx"
    to_onnx(found.small, path, opset=None, metadata={})
    weights = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert not any(name.startswith(("body.1.", "body.3.")) for name in weights if name.endswith("weight"))
    assert check_onnx(path, found.small, other_batches(found.small, (3,), 0)) < 1e-5


def test_of_ranks_and_widths_the_better_is_taken(net: nn.Module) -> None:
    """Layers of rank 2 lose nothing with their ranks, and much with their widths."""
    torch.manual_seed(1)
    layers = [nn.Linear(24, 24) for _ in range(3)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(24, 2) @ torch.randn(2, 24) / 5)
    plain = nn.Sequential(*(module for layer in layers for module in (layer, nn.Tanh())), nn.Linear(24, 5))
    options = {"of": "macs", "ratio": 0.5, "recover": "bias", "criterion": "l1", "multiple_of": 1, "low_rank": True}
    data = [torch.randn(64, 24) for _ in range(3)]
    found = compile_model(plain, (data[0][:2],), Recipe.of(data=data, allocate="judged", **options))
    assert found.met is not None
    assert found.met.allocate == "judged: product of ranks"
