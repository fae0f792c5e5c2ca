"""slim(): the small module computes what was proven, the user's model stays as it was, and runs repeat exactly."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slim_model
import small_nets
from slim_model import InputError, Recipe, Slices, cli, slim
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import make_small_module
from small_nets import SHAPE, HardCoded, Residual, error, images, trained


class Strided(nn.Module):
    """As a ResNet begins: 7x7 stride 2, pooling, a block with its shortcut of stride 2, a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.conv3 = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24))
        self.shortcut = nn.Sequential(nn.Conv2d(16, 24, 1, 2, bias=False), nn.BatchNorm2d(24))
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.drop = nn.Dropout(0.5)
        self.hidden, self.norm, self.head = nn.Linear(24, 32), nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        x = torch.relu(self.conv3(self.conv2(x)) + self.shortcut(x))
        x = self.drop(self.depthwise(x).mean((2, 3)))
        return self.head(torch.relu(self.norm(self.hidden(x))))


NETS: list[type[nn.Module]] = [Residual, Strided, HardCoded]


# -- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("ratio", "seed"), [(0.25, 0), (0.5, 1), (0.7, 2)])
def test_the_module_computes_what_was_proven(net: type[nn.Module], ratio: float, seed: int) -> None:
    model = trained(net(), seed)
    result = compile_model(model, (images(),), Recipe.of(ratio, "random", multiple_of=1, seed=seed))
    assert result.proof.masked_max_rel_error <= 1e-4
    module, *_ = make_small_module(model, result.small)
    for batch in (1, 5):
        assert error(result.small.run((images(batch),))[0], module(images(batch))) <= 1e-5
    before, after = (sum(column) for column in zip(*result.plan.widths, strict=True))
    assert 1 - after / before == pytest.approx(ratio, abs=0.02)
    assert parameters(module) == result.slim_cost.params < result.dense_cost.params == parameters(model)


@pytest.mark.parametrize("net", [Residual, Strided])
def test_the_module_is_of_the_users_own_class(net: type[nn.Module]) -> None:
    """Every layer remembers its new sizes, as a layer built with them would."""
    result = slim(trained(net()), images(), multiple_of=1)
    assert type(result.module) is net
    assert not result.module.training
    for name, layer in result.module.named_modules():
        built = again(layer)
        if built is not None:
            assert {k: v.shape for k, v in layer.state_dict().items()} == {
                k: v.shape for k, v in built.state_dict().items()
            }, name
            assert layer.extra_repr() == built.extra_repr(), name
    result.module.train()(images(4)).sum().backward()
    assert all(p.grad is not None for p in result.module.parameters())


def again(layer: nn.Module) -> nn.Module | None:
    """A new layer from the sizes that ``layer`` remembers."""
    match layer:
        case nn.Conv2d():
            return nn.Conv2d(
                *(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding),
                groups=layer.groups,
                bias=layer.bias is not None,
            )
        case nn.Linear():
            return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        case nn.BatchNorm2d():
            return nn.BatchNorm2d(layer.num_features)
        case nn.LayerNorm():
            return nn.LayerNorm(layer.normalized_shape)
        case _:
            return None


def test_a_depthwise_layer_stays_depthwise() -> None:
    module: Any = slim(trained(Strided()), images(), multiple_of=1).module
    assert module.depthwise.groups == module.depthwise.in_channels == module.depthwise.out_channels == 12


def test_a_forward_with_sizes_of_its_own_becomes_a_graph() -> None:
    result = slim(trained(HardCoded()), images(), multiple_of=1)
    assert isinstance(result.module, torch.fx.GraphModule)
    assert result.module(images(3)).shape == (3, 5)
    assert {name for name, _ in result.module.named_parameters()} == {n for n, _ in HardCoded().named_parameters()}
    assert any("traced graph" in note for note in result.report.warnings)
    result.module(images(2)).sum().backward()


# -- the user's model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_the_users_model_stays_as_it_was(net: type[nn.Module]) -> None:
    model: Any = trained(net()).train()
    first, second = list(model.children())[:2]
    first.eval()
    second.requires_grad_(False)
    calls: list[str] = []
    first.register_forward_hook(lambda *_: calls.append("hook"))
    model.note = {"owner": "me"}
    model(images()).sum().backward()
    before, gradients = copy.deepcopy(model), [copy.deepcopy(p.grad) for p in model.parameters()]
    storages = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    hooks, random = dict(first._forward_hooks), torch.get_rng_state()

    slim(model, images(), multiple_of=1)

    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == storages
    for ours, theirs in zip(model.modules(), before.modules(), strict=True):
        assert ours.training == theirs.training
        assert vars(ours).keys() == vars(theirs).keys()
        assert ours.extra_repr() == theirs.extra_repr()
    for ours, theirs, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        assert ours.requires_grad == theirs.requires_grad
        assert ours.grad is gradient is None or torch.equal(ours.grad, gradient)
    assert dict(first._forward_hooks) == hooks
    assert model.note == {"owner": "me"}
    assert torch.equal(torch.get_rng_state(), random)


def test_frozen_parameters_stay_frozen() -> None:
    model: Any = trained(Residual())
    model.block1.requires_grad_(False)
    module: Any = slim(model, images(), multiple_of=1).module
    assert not any(p.requires_grad for p in module.block1.parameters())
    assert all(p.requires_grad for p in module.block2.parameters())


def test_the_example_stays_as_it_was() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu_(self.conv(x.mul_(0.5))).mean((2, 3)))

    x = images()
    slim(trained(InPlace()), x, multiple_of=1)
    assert torch.equal(x, images())


# -- choices --------------------------------------------------------------------------------------------------------


def test_a_criterion_may_be_a_function() -> None:
    seen: list[Slices] = []

    def last_ones(slices: Slices) -> Tensor:
        seen.append(slices)
        return torch.arange(slices.width, dtype=torch.float32)

    result = slim(trained(Residual()), images(), criterion=last_ones, multiple_of=1)
    for group in result.report.groups:
        assert group["kept"] == list(range(group["before"] - group["after"], group["before"]))
    assert [slices.width for slices in seen] == [group["before"] for group in result.report.groups]
    assert result.report.recipe["ranking"]["criterion"] == "last_ones"


def test_l1_keeps_the_filters_with_the_largest_weights() -> None:
    """One layer of 8 filters of known size: 0.1, 0.8, 0.3, ... with nothing else coupled to it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).eval()
    sizes = torch.tensor([0.1, 0.8, 0.3, 0.6, 0.5, 0.4, 0.7, 0.2])
    with torch.no_grad():
        model[0].weight.copy_(
            sizes[:, None, None, None].expand(8, 3, 3, 3) * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
        )
    result = slim(model, images(), criterion="l1", multiple_of=1)
    assert result.report.groups[0]["kept"] == [1, 3, 4, 6]
    assert torch.equal(result.module[0].weight, model[0].weight[[1, 3, 4, 6]])  # type: ignore[index, union-attr]
    assert torch.equal(result.module[2].weight, model[2].weight[:, [1, 3, 4, 6]])  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"ratio 0\.0 is not between 0 and 1"),
        ({"ratio": 1.5}, r"ratio 1\.5 is not between 0 and 1.*fraction of channels removed"),
        ({"criterion": "largest"}, "no criterion is called 'largest'. There are: .*l1"),
        ({"criterion": lambda slices: torch.zeros(3)}, r"must return one score for each of its \d+ channels"),
        ({"criterion": lambda slices: torch.full((slices.width,), torch.nan)}, "NaN or infinity"),
        ({"scope": "everywhere"}, "scope 'everywhere' is unknown.*local, global"),
        ({"multiple_of": 0}, "multiple_of 0"),
        ({"multiple_of": 1.5}, r"multiple_of 1\.5"),
        ({"keep": ("no_such_layer",)}, "no_such_layer"),
    ],
)
def test_a_choice_that_is_not_one(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        slim(trained(Residual()), images(), **options)


def test_an_input_that_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"on these inputs \(x: \(2, 1, 16, 16\) float32\).*3 channels, but got 1"):
        slim(trained(Residual()), images()[:, :1])


def test_keep_may_be_one_pattern() -> None:
    report = slim(trained(Residual()), images(), keep="block1.*", multiple_of=1).report  # type: ignore[arg-type]
    assert report.groups


# -- runs repeat ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_runs_in_one_process_repeat(criterion: str) -> None:
    torch.manual_seed(1)
    first = slim(trained(Residual()), images(), criterion=criterion, seed=7, multiple_of=1)
    torch.manual_seed(2)
    second = slim(trained(Residual()), images(), criterion=criterion, seed=7, multiple_of=1)
    assert np.array_equal(first.plan.keep, second.plan.keep)
    assert first.report.groups == second.report.groups
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))


def test_the_seed_decides_what_is_random() -> None:
    plans = [slim(trained(Residual()), images(), criterion="random", seed=s).plan.keep for s in (0, 1)]
    assert not np.array_equal(*plans)


SAVED = {"random": ".safetensors", "l1": ".pt2", "fpgm": ".pt"}


@pytest.fixture(scope="module")
def written_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders in which this process, and one with two threads and another order of sets, wrote files for each
    criterion of ``SAVED``."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    weights = folders[0] / "in.pt"
    torch.save(trained(Residual()).state_dict(), weights)
    mine, others = (commands(weights, folder) for folder in folders)
    env = {"PYTHONPATH": str(Path(slim_model.__file__).parents[1]), "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "2"}
    code = "import json, sys; from slim_model import cli; sys.exit(sum(map(cli.run, json.loads(sys.argv[1]))))"
    line = [sys.executable, "-c", code, json.dumps(others)]
    with subprocess.Popen(line, env=os.environ | env, stdout=subprocess.DEVNULL) as process:
        assert [cli.run(command) for command in mine] == [0] * len(SAVED)
        assert process.wait(timeout=240) == 0
    return folders


def commands(weights: Path, folder: Path) -> list[list[str]]:
    return [
        [
            *(str(weights), str(folder / f"{criterion}.onnx"), "--report", str(folder / f"{criterion}.json")),
            *("--arch", f"{small_nets.__file__}:Residual", "--input", SHAPE, "--criterion", criterion, "--seed", "3"),
            *("--save", str(folder / f"{criterion}{form}"), "--no-bench"),
        ]
        for criterion, form in SAVED.items()
    ]


@pytest.mark.parametrize("criterion", SAVED)
def test_two_processes_with_different_threads_write_the_same(criterion: str, written_twice: tuple[Path, Path]) -> None:
    """All of OUT.onnx and of the saved model, whatever they are called."""
    one, two = written_twice
    for suffix in (".onnx", SAVED[criterion]):
        name = f"{criterion}{suffix}"
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    reports = [json.loads((folder / f"{criterion}.json").read_text()) for folder in written_twice]
    for report in reports:
        del report["recipe"]["source"]["path"], report["recipe"]["outputs"]
    for key in ("groups", "pinned", "dense", "slim", "recipe", "source"):
        assert reports[0][key] == reports[1][key], key


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# -- TorchScript inside ---------------------------------------------------------------------------------------------


class Scripted(nn.Module):
    """A model of which a part came as TorchScript (silero-vad and others give archives)."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.fc, self.head = part, nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(self.part(x).mean((2, 3)))))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(("keep", "own"), [((), False), (("part.*",), True)])
def test_a_model_that_holds_torchscript(keep: tuple[str, ...], own: bool, copied: bool) -> None:
    """A copy of it has parameters with a gradient behind them, whose flags cannot be changed."""
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3)).eval()
    script = torch.jit.trace(part, torch.randn(2, 3, 9, 9))
    model, x = Scripted(copy.deepcopy(script) if copied else script).eval(), torch.randn(2, 3, 9, 9)
    result = slim(model, x, ratio=0.5, multiple_of=1, keep=keep)
    assert isinstance(result.module, Scripted) == own
    assert all(p.is_leaf and p.requires_grad for p in result.module.parameters())
    assert [after for _, after in result.plan.widths] == ([4] if own else [4, 8, 4])
