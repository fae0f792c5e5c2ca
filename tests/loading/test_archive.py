"""Exported programs and TorchScript: what is loaded from an archive, and nothing hostile in it runs."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from model_files import INPUT, Calls, exported, refusal, rewrite, small_net
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions


def test_torchscript_loads(file: Path) -> None:
    net = small_net()
    torch.jit.save(torch.jit.script(net), file)
    subject = load(file, SourceOptions(inputs=INPUT))
    assert subject.kind == "torchscript"
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))


@pytest.mark.parametrize(
    "save", [lambda net, path: exported(net, path), lambda net, path: torch.jit.script(net).save(path)]
)
def test_archives_that_have_an_architecture_refuse_another(file: Path, save: Any) -> None:
    save(small_net(), file)
    assert "Leave out --arch" in refusal(file, arch="torchvision:resnet18")


def test_an_exported_program_carries_its_inputs(tmp_path: Path) -> None:
    net = small_net()
    path = exported(net, tmp_path / "m.pt2", dynamic_shapes=({0: torch.export.Dim.AUTO},))
    subject = load(path)
    assert subject.kind == "exported program"
    assert subject.program is not None
    assert [tuple(x.shape) for x in subject.inputs] == [(2, 3, 8, 8)]
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))
    assert tuple(load(path, SourceOptions(inputs=["5x3x8x8"])).inputs[0].shape) == (5, 3, 8, 8)
    assert "cannot run" in refusal(path, inputs=["1x3x9x9"])


def test_a_program_with_dynamic_sizes_constants_and_a_tree_of_outputs_passes(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.fc = torch.randn(3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            with torch.no_grad():
                y = self.fc(x) * self.scale + torch.arange(x.shape[1])[None, :, None]
            return {"out": y[:, : max(x.shape[1] // 2, 1)], "more": [y.reshape(y.shape[0], -1, 3)]}

    auto = torch.export.Dim.AUTO
    path = exported(Net().eval(), tmp_path / "m.pt2", (4, 6, 3), dynamic_shapes=({0: auto, 1: auto},))
    assert load(path).kind == "exported program"


def test_a_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    running = nn.InstanceNorm2d(3, track_running_stats=True)
    for layer in (nn.BatchNorm2d(3), nn.Dropout(), nn.AlphaDropout(), running):
        net = nn.Sequential(layer, nn.Conv2d(3, 3, 1)).train()
        assert "model.eval()" in refusal(exported(net, tmp_path / "m.pt2"))


def test_a_norm_without_running_statistics_is_not_in_training_mode(tmp_path: Path) -> None:
    """In evaluation, too, it normalises by those of the batch."""
    for layer in (nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3)):
        net = nn.Sequential(layer, nn.Conv2d(3, 3, 1)).eval()
        assert load(exported(net, tmp_path / "m.pt2")).kind == "exported program"


def test_a_program_with_keyword_inputs_carries_them(tmp_path: Path) -> None:
    net, x, path = small_net(), torch.randn(2, 3, 8, 8), tmp_path / "m.pt2"
    torch.export.save(torch.export.export(net, (), {"input": x}), path)
    subject = load(path)
    assert list(subject.arguments.kwargs) == ["input"]
    assert torch.equal(subject.arguments.kwargs["input"], x)
    assert torch.equal(subject.arguments.call(subject.model), net(x))


def _edit(old: str, new: str) -> dict[str, Callable[[bytes], bytes]]:
    return {"models/model.json": lambda text: text.replace(old.encode(), new.encode(), 1)}


def _tree(in_spec: str) -> dict[str, Callable[[bytes], bytes]]:
    def edit(text: bytes) -> bytes:
        program = json.loads(text)
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = in_spec
        return json.dumps(program).encode()

    return {"models/model.json": edit}


_EVIL = "__import__('evil_module')"
_SIZE = '"as_expr": {"expr_str": "'
_FACTORY = {"default_factory_module": "evil_module", "default_factory_name": "net", "dict_context": "[]"}
_DEFAULTDICT = {"type": "collections.defaultdict", "context": _FACTORY, "children_spec": []}
_ENUM = {"type": "builtins.dict", "context": '[{"__enum__": true, "fqn": "evil_module:A", "name": "b"}]'}
#: What a malicious .pt2 may hold: edits of the records of an honest one.
PROGRAM_ATTACKS: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "size that is code": _edit(f"{_SIZE}Symbol", f"{_SIZE}{_EVIL} or Symbol"),
    "size with a string": _edit(f"{_SIZE}Symbol(", f"{_SIZE}Max('{_EVIL}'), Symbol("),
    "size of an attribute": _edit(f"{_SIZE}Symbol(", f"{_SIZE}Symbol.__subclasses__(), Symbol("),
    "call of torch.hub": _edit("torch.ops.aten.relu.default", "torch.hub.load"),
    "call of os": _edit("torch.ops.aten.relu.default", "torch.serialization.os.system"),
    "call of load_library": _edit("torch.ops.aten.relu.default", "torch.ops.load_library"),
    "operator that reads files": _edit("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"),
    "operator that is a call": _edit("torch.ops.aten.relu.default", "_operator.methodcaller"),
    "operator of images": _edit("torch.ops.aten.relu.default", "torch.ops.image.read_file.default"),
    "node name that is code": _edit('"name": "relu"', f'"name": "relu={_EVIL};relu"'),
    "input name that is code": _edit('"name": "input"', f'"name": "input={_EVIL}"'),
    "weight name that is code": _edit('"parameter_name": "fc.weight"', '"parameter_name": "fc\\")+(weight"'),
    "module name that is code": _edit('"fqn": "fc"', '"fqn": "fc\\")+("'),
    "argument name that is code": _edit('"forward_arg_names": ["input"]', f'"forward_arg_names": ["x={_EVIL}"]'),
    "tree that imports": _tree(json.dumps([1, _DEFAULTDICT])),
    "tree with an enum": _tree(json.dumps([1, _ENUM | {"children_spec": []}])),
    "tree that is no json": _tree("evil"),
    "weight as a pickle": {
        "data/weights/model_weights_config.json": lambda text: text.replace(
            b'"use_pickle": false', b'"use_pickle": true'
        )
    },
    "object as a pickle": {
        "data/weights/model_weights_config.json": lambda text: text.replace(b'"weight_0"', b'"opaque_obj_0"')
    },
    "inputs as a pickle": {
        "data/sample_inputs/model.pt": lambda _: _saved(Calls(importlib.import_module, "evil_module"))
    },
    "compiled code": {"data/aotinductor/model/evil.so": lambda _: b"\x7fELF"},
    "second model": {"models/other.json": lambda _: b"{}"},
}


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def honest_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "honest.pt2"
    return exported(small_net(), path, dynamic_shapes=({0: torch.export.Dim.AUTO},))


@pytest.mark.parametrize("attack", PROGRAM_ATTACKS)
def test_a_malicious_program_is_refused(
    file: Path, ran: Path, honest_program: Path, attack: str, evil_module: None
) -> None:
    file.write_bytes(honest_program.read_bytes())
    load(rewrite(file, {}))  # an archive written like this is read
    rewrite(file, PROGRAM_ATTACKS[attack])
    message = refusal(file)
    assert "is refused" in message
    assert "--trust-pickle" in message
    assert "evil_module" not in sys.modules


def test_guards_of_a_program_are_not_executed(file: Path, honest_program: Path, ran: Path, evil_module: None) -> None:
    file.write_bytes(honest_program.read_bytes())
    rewrite(file, _edit('"guards_code": []', f'"guards_code": ["{_EVIL} is None"]'))
    load(file).program.module()(torch.randn(2, 3, 8, 8))  # type: ignore[union-attr]
    assert "evil_module" not in sys.modules


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.ops.aten.save(x, "ran")
        return x


class ByName(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[torch.ops.torchvision.nms(x, x[:, 0], 0.5)]


class ByFunction(nn.Module):
    """The archive then has the code of torchvision, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[torchvision.ops.nms(x, x[:, 0], 0.5)]


@pytest.mark.parametrize("net", [ByName(), ByFunction()])
def test_torchscript_may_call_torchvision(file: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.save(torch.jit.script(net), file)
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    load(file, SourceOptions(inputs=["5x4"]))
    assert [name for name in imported if name != "torch"] == ["torchvision"]  # it has the operator


class WritesAnImage(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.image.write_file("ran", x.to(torch.uint8))


def test_names_in_torchscript_that_could_be_code_are_refused(file: Path) -> None:
    net = nn.Sequential()
    net.add_module("a(b", nn.Linear(3, 3))
    torch.jit.save(torch.jit.script(net), file)
    assert "'a(b' is no name" in refusal(file, inputs=["1x3"])


@pytest.mark.parametrize("net", [Writes(), WritesAnImage()])
def test_torchscript_that_reaches_files_is_refused(file: Path, net: nn.Module, evil_module: None, ran: Path) -> None:
    torch.jit.save(torch.jit.script(net), file)
    assert "is refused" in refusal(file, inputs=["1x3"])
    assert not ran.exists()
