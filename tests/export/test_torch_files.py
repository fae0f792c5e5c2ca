"""The small PyTorch model as a file: .pt2 and .pt load as they are, .safetensors shrinks a freshly built one."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from slim_model import restore
from slim_model.errors import InputError
from slim_model.export.options import FORMATS, OutputOptions
from slim_model.export.torch_files import save
from slim_model.graph.stored_tensors import shared_names
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.own_module import SmallModule, make_small_module
from slim_model.recipe import Recipe
from small_nets import HardCoded, Residual, error, images, trained

NETS: dict[str, Callable[[], nn.Module]] = {"module": Residual, "graph": HardCoded}
"""By the form the small model takes: its own class, or the traced graph."""
RECIPE = Recipe.of(ratio=0.5, multiple_of=1, keep=("stem",))


@functools.cache
def compiled(form: str) -> tuple[Compiled, SmallModule]:
    model = trained(NETS[form](), seed=3)
    recipe = RECIPE if form == "module" else Recipe.of(ratio=0.5, multiple_of=1)
    result = compile_model(model, (images(),), recipe)
    return result, make_small_module(model, result.small)


def write(form: str, path: Path) -> Path:
    result, small = compiled(form)
    assert small.own == (form == "module")
    recipe = RECIPE if form == "module" else Recipe.of(ratio=0.5, multiple_of=1)
    save(result.small, small, path, result.removal(recipe))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return path


def expected(form: str, x: Tensor) -> Tensor:
    """What the proven graph computes."""
    return compiled(form)[0].small.run((x,))[0]


@pytest.mark.parametrize("form", NETS)
def test_free_axes_are_in_the_archive(form: str, tmp_path: Path) -> None:
    """Those that a program brings, and those that are asked for; both of the user's own class and of the graph."""
    net: nn.Module = trained(Residual())
    auto = torch.export.Dim.AUTO
    program = torch.export.export(net, (images(),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    recipe = Recipe.of(ratio=0.5, multiple_of=1, dynamic=() if form == "graph" else (2, 3))
    result = compile_model(net, (images(),), recipe, program=program if form == "graph" else None)
    save(result.small, make_small_module(net, result.small), tmp_path / "small.pt2", result.removal(recipe))
    x = torch.randn(3, 3, 9, 20)
    small = torch.export.load(tmp_path / "small.pt2").module()
    assert error(result.small.run((x,))[0], small(x)) <= 1e-6


def test_what_is_restored_as_a_graph_has_its_free_axes(tmp_path: Path) -> None:
    """A mean over channels has another count in the small model, which its own class does not know."""
    model = trained(Averaging())
    recipe = Recipe.of(ratio=0.5, multiple_of=1, dynamic=(2, 3))
    result = compile_model(model, (images(),), recipe)
    small = make_small_module(model, result.small)
    assert not small.own
    save(result.small, small, tmp_path / "small.safetensors", result.removal(recipe))
    x = torch.randn(3, 3, 9, 20)
    assert error(result.small.run((x,))[0], restore(model, tmp_path / "small.safetensors")(x)) <= 1e-6


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).mean(1, keepdim=True))


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_bytes_under_any_name(suffix: str, tmp_path: Path) -> None:
    written = []
    for name in ("a", "another"):
        (tmp_path / name).mkdir()
        written.append(write("module", tmp_path / name / f"{name}{suffix}").read_bytes())
    assert written[0] == written[1]


def test_archives_load_without_the_class(tmp_path: Path) -> None:
    """In a fresh process that can import neither the model's code nor slim_model."""
    inputs = [images(batch) for batch in (1, 2, 7)]
    for form in NETS:
        (tmp_path / form).mkdir()
        write(form, tmp_path / form / "small.pt2")
    torch.save(inputs, tmp_path / "x.pt")
    code = """if True:
        import sys, torch
        for form in sys.argv[1:]:
            model = torch.export.load(form + "/small.pt2").module()
            torch.save([model(x) for x in torch.load("x.pt")], form + "/y.pt")
        assert "samples" not in sys.modules and "slim_model" not in sys.modules
    """
    argv = [sys.executable, "-I", "-c", code, *NETS]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    for form in NETS:
        for x, y in zip(inputs, torch.load(tmp_path / form / "y.pt"), strict=True):
            assert error(expected(form, x), y) <= 1e-5


@pytest.mark.parametrize("form", NETS)
def test_a_pickled_module_loads(form: str, tmp_path: Path) -> None:
    module = torch.load(write(form, tmp_path / "small.pt"), weights_only=False)
    assert error(expected(form, images(7)), module(images(7))) <= 1e-5


@pytest.mark.parametrize("form", NETS)
def test_restore_shrinks_a_freshly_built_model(form: str, tmp_path: Path) -> None:
    fresh = NETS[form]()
    before = copy.deepcopy(fresh.state_dict())
    module = restore(fresh, write(form, tmp_path / "small.safetensors"))
    assert error(expected(form, images(7)), module(images(7))) <= 1e-5
    assert not any(m.training for m in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
    assert parameters(module) == parameters(compiled(form)[1].module) < parameters(fresh)
    assert isinstance(module, type(fresh)) == (form == "module")


@pytest.mark.parametrize("form", NETS)
def test_a_restored_model_can_be_trained(form: str, tmp_path: Path) -> None:
    module = restore(NETS[form](), write(form, tmp_path / "small.safetensors"))
    module(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


def test_the_plan_is_in_the_file(tmp_path: Path) -> None:
    with safetensors.safe_open(write("module", tmp_path / "small.safetensors"), "pt") as file:
        metadata = file.metadata()
        assert tuple(file.get_tensor("fc.weight").shape) == (5, 12)
    assert metadata["format"] == "slim-model/1"
    removed = json.loads(metadata["removed"])
    assert len(removed["fc.weight"]["1"]) == 12
    assert "0" not in removed["fc.weight"]
    assert "stem.weight" not in removed


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3)
            self.a = nn.Conv2d(16, 16, 3, padding=1)
            self.b = nn.Conv2d(16, 16, 3, padding=1)
            self.b.weight = self.a.weight
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(torch.relu(self.a(torch.relu(self.stem(x))))).mean((2, 3)))

    model, recipe = trained(Tied()), Recipe.of(ratio=0.5, multiple_of=1)
    result = compile_model(model, (images(),), recipe)
    small = make_small_module(model, result.small)
    path = tmp_path / "small.safetensors"
    save(result.small, small, path, result.removal(recipe))
    names = safetensors.torch.load_file(path)
    assert ("a.weight" in names) != ("b.weight" in names)
    again = restore(Tied(), path)
    assert again.a.weight is again.b.weight
    assert error(small.module(images(3)), again(images(3))) <= 1e-6


TIES: dict[str, Callable[[Tensor], nn.Parameter]] = {
    "one parameter": lambda weight: cast("nn.Parameter", weight),
    "one memory": lambda weight: nn.Parameter(weight.data),
    "its transpose": lambda weight: nn.Parameter(weight.data.t()),
}
"""By how the weights of two layers are tied: what the second has, of the first's."""


class TwoTied(nn.Module):
    """Two square layers whose weights are tied; ``hard``: a size in its forward, so that it is saved as a graph."""

    def __init__(self, tie: str, hard: bool) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Linear(16, 16), nn.Linear(16, 16)
        self.middle, self.fc = nn.Linear(16, 12), nn.Linear(12, 5)
        self.b.weight = TIES[tie](self.a.weight)
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(torch.relu(self.stem(x)).mean((2, 3))))))
        x = torch.relu(self.middle(x))
        return self.fc(x.view(-1, 12) if self.hard else x)


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("hard", [False, True], ids=["module", "graph"])
@pytest.mark.parametrize("keep", [(), ("stem", "a", "b")], ids=["cut", "uncut"])
def test_whatever_is_tied_restores_to_what_was_saved(
    tie: str, hard: bool, keep: tuple[str, ...], tmp_path: Path
) -> None:
    model, recipe = trained(TwoTied(tie, hard)), Recipe.of(ratio=0.5, multiple_of=1, keep=keep)
    result = compile_model(model, (images(),), recipe)
    small = make_small_module(model, result.small)
    assert small.own != hard
    path = tmp_path / "small.safetensors"
    save(result.small, small, path, result.removal(recipe))
    names = safetensors.torch.load_file(path)
    assert ("b.weight" in names) == (tie == "its transpose")
    again = restore(TwoTied(tie, hard), path)
    assert error(small.module(images(3)), again(images(3))) <= 1e-6
    tied = dict(again.named_parameters(remove_duplicate=False))
    assert shared_names(tied) == ({} if tie == "its transpose" else {"b.weight": "a.weight"})


# -- what restore refuses -------------------------------------------------------------------------------------------


def wider() -> nn.Module:
    net = HardCoded()
    net.conv1, net.conv2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
    return net


def narrower() -> nn.Module:
    net = HardCoded()
    net.conv1, net.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 16, 3, padding=1)
    return net


def with_one_layer_more() -> nn.Module:
    net = Residual()
    net.add_module("another", nn.Conv2d(24, 24, 1))
    return net


def with_a_wider_stem() -> nn.Module:
    net = Residual()
    net.stem, net.bn = nn.Conv2d(3, 20, 3, bias=False), nn.BatchNorm2d(20)
    return net


def with_a_narrower_head() -> nn.Module:
    net = Residual()
    net.fc = nn.Linear(8, 5)
    return net


@pytest.mark.parametrize(
    ("form", "build"),
    [
        ("module", HardCoded),
        ("graph", Residual),
        ("module", with_one_layer_more),
        ("module", with_a_wider_stem),
        ("module", with_a_narrower_head),
        ("graph", wider),
        ("graph", narrower),
    ],
)
def test_a_model_that_is_not_the_files_own_is_refused(
    form: str, build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    path = write(form, tmp_path / "small.safetensors")
    with pytest.raises(InputError, match=r"small\.safetensors does not belong to this model"):
        restore(build(), path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    with pytest.raises(InputError, match=r"foreign\.safetensors cannot be read"):
        restore(Residual(), path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match=r"foreign\.safetensors cannot be read"):
        restore(Residual(), path)
    safetensors.torch.save_file(Residual().state_dict(), path)
    with pytest.raises(InputError, match=r"was not written by slim-model --save: it holds no plan"):
        restore(Residual(), path)


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"small.h5.*" + ", ".join(FORMATS)):
        OutputOptions(save=tmp_path / "small.h5")


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
