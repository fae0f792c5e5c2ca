"""Nothing in an untrusted pickle runs."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.fx.graph_module import reduce_graph_module

import small_nets
from model_files import INPUT, Calls, code_that_creates, refusal, rewrite, small_net
from slim_model.errors import InputError
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions


def malicious_file(ran: Path) -> str:
    path = ran.with_name("evil.pt")
    torch.save(Calls(exec, code_that_creates(ran)), path)
    return str(path)


#: What a malicious pickle may try; each makes an object from the file that must not come to exist.
ATTACKS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda ran: Calls(os.system, f"touch {ran}"),
    "eval": lambda ran: Calls(eval, code_that_creates(ran)),
    "exec": lambda ran: Calls(exec, code_that_creates(ran)),
    "open": lambda ran: Calls(open, str(ran), "w"),
    "getattr": lambda ran: Calls(getattr, nn.Linear, "__init__"),
    "import": lambda ran: Calls(importlib.import_module, "evil_module"),
    "__import__": lambda ran: Calls(builtins.__import__, "evil_module"),
    "pickle.loads": lambda ran: Calls(pickle.loads, pickle.dumps(Calls(exec, code_that_creates(ran)))),
    "torch.load": lambda ran: Calls(torch.load, malicious_file(ran)),
    "torch.serialization.load": lambda ran: Calls(torch.serialization.load, malicious_file(ran)),
    "torch.hub.load": lambda ran: Calls(torch.hub.load, str(ran.parent), "net", "local"),
    "torch.jit.load": lambda ran: Calls(torch.jit.load, malicious_file(ran)),
    "torch.save": lambda ran: Calls(torch.save, 1, str(ran)),
    "torch.export.load": lambda ran: Calls(torch.export.load, malicious_file(ran)),
    "torch.fx code": lambda ran: Calls(reduce_graph_module, {"_code": code_that_creates(ran)}, ""),
    "graph module": lambda ran: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())),
    "partial": lambda ran: functools.partial(os.system, f"touch {ran}"),
    "partial called": lambda ran: Calls(functools.partial(os.system, f"touch {ran}")),
    "partial of a partial": lambda ran: functools.partial(functools.partial, nn.ReLU),
    "partial with a module": lambda ran: functools.partial(nn.Sequential, nn.ReLU()),
    "partial as its own class": lambda ran: functools.partial,
    "constructor": lambda ran: Calls(nn.Linear, 2, 2),
    "constructor in torchvision": lambda ran: Calls(torchvision.ops.MLP, 2, [2]),
    "function in torch.nn": lambda ran: Calls(nn.init.ones_, torch.zeros(2)),
    "torchvision builder": lambda ran: Calls(torchvision.models.resnet18),
    "torchvision download": lambda ran: Calls(torchvision.models.get_model, "resnet18", "DEFAULT"),
    "torchvision dataset": lambda ran: Calls(torchvision.datasets.FakeData, 1),
    "torchvision write": lambda ran: Calls(torchvision.io.write_file, str(ran), torch.zeros(1, dtype=torch.uint8)),
    "timm builder": lambda ran: Calls(pytest.importorskip("timm").create_model, "test_resnet"),
    "timm checkpoint": lambda ran: Calls(pytest.importorskip("timm").models.load_checkpoint, nn.ReLU(), "x"),
    "timm graph": lambda ran: Calls(pytest.importorskip("timm").models.FeatureGraphNet, nn.ReLU(), (0,)),
    "unknown class": lambda ran: SimpleNamespace(a=1),
}


def _name(module: str, name: str) -> bytes:
    """A pickle that is the global of that name, whether or not there is one."""
    return f"\x80\x02c{module}\n{name}\n.".encode("latin1")


#: Names that look as if they were of a layer.
NAMES = {
    "imported into torchvision": _name("torchvision.models.feature_extraction", "_CodeOnlyModule"),
    "imported into torch.nn": _name("torch.nn.modules.module", "functools"),
    "attribute of a class": _name("torch.nn.modules.linear", "Linear.__init__"),
    "package that is not there": _name("torch.nn.modules.evil", "Evil"),
    "name with a path": _name("torch.nn.modules./../../evil_module", "Evil"),
    "name like torch": _name("torch.nn.modulesevil", "Evil"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", ["", "checkpoint", "attribute"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_is_refused(
    file: Path, ran: Path, attack: str, inside: str, legacy: bool, evil_module: None
) -> None:
    value = ATTACKS[attack](ran)
    if inside == "checkpoint":
        value = {"state_dict": {"weight": torch.ones(2)}, "model": value, "epoch": 1}
    if inside == "attribute":
        net = small_net()
        net.fc.note = [value]
        value = net
    allowed = set(torch.serialization.get_safe_globals())
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    ran.unlink(missing_ok=True)
    message = refusal(file, inputs=INPUT)
    assert "refused" in message or "cannot be imported" in message or "cannot be read" in message
    # where only tensors are wanted it may load, but nothing runs either
    with contextlib.suppress(InputError):
        load(file, SourceOptions(inputs=INPUT, arch=f"{small_nets.__file__}:Residual"))
    assert not ran.exists()
    assert "evil_module" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_layer_is_refused(file: Path, ran: Path, name: str, evil_module: None) -> None:
    torch.save(0, file)
    rewrite(file, {"data.pkl": lambda _: NAMES[name]})
    message = refusal(file)
    assert "refused" in message or "cannot be imported" in message
    assert "evil_module" not in sys.modules


def test_a_refusal_names_the_class_and_the_ways_out(file: Path, ran: Path) -> None:
    torch.save(Calls(os.system, f"touch {ran}"), file)
    message = refusal(file)
    assert f"{os.system.__module__}.system" in message
    for way_out in ("--trust-pickle", "--arch", ".pt2"):
        assert way_out in message


def test_trust_means_trust(file: Path, ran: Path) -> None:
    torch.save({"model": small_net(), "log": Calls(os.system, f"touch {ran}")}, file)
    load(file, SourceOptions(inputs=INPUT, trust_pickle=True))
    assert ran.exists()


def test_no_constructor_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(small_net(), file)
    monkeypatch.setattr(nn.Linear, "__init__", lambda *_: pytest.fail("a constructor ran"))
    load(file, SourceOptions(inputs=INPUT))


def _name_as_code(ran: Path) -> str:
    """As a submodule's name it ends the string that torch.fx writes it into. Without a dot, as torch demands."""
    path = "".join(f"chr({ord(c)})+" for c in str(ran)) + "''"
    return f'a", getattr(open({path}, "w"), "close")()) if 1 else ("'


def _submodule(net: nn.Sequential, name: str) -> None:
    net._modules[name] = nn.ReLU()


def _parameter(net: nn.Sequential, name: str) -> None:
    net.conv._parameters[name] = nn.Parameter(torch.ones(1))


def _buffer(net: nn.Sequential, name: str) -> None:
    net.conv._buffers[name] = torch.ones(1)


def _attribute(net: nn.Sequential, name: str) -> None:
    net.conv.__dict__[name] = torch.ones(1)


@pytest.mark.parametrize("place", [_submodule, _parameter, _buffer, _attribute])
def test_names_that_are_code_are_refused(file: Path, ran: Path, place: Callable[..., None]) -> None:
    """torch.export and torch.fx write names into code and execute it: with torch's own classes alone."""
    net = small_net()
    place(net, _name_as_code(ran))
    torch.save(net, file)
    assert "refused" in refusal(file, inputs=INPUT)
    assert not ran.exists()


def test_the_attack_by_name_is_real(ran: Path) -> None:
    """If this ever fails torch has closed the hole, and the check of names may go."""
    net = nn.Sequential()
    net.add_module(_name_as_code(ran), nn.ReLU())
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        torch.export.export(net, (torch.ones(1),)).module()(torch.ones(1))
        torch.fx.symbolic_trace(net)(torch.ones(1))
    assert ran.exists()


def _shadow(net: nn.Sequential) -> None:
    net.forward = F.relu  # type: ignore[method-assign]


def _hook(net: nn.Sequential) -> None:
    net.fc._forward_pre_hooks[0] = F.relu  # type: ignore[assignment]


def _call(net: nn.Sequential) -> None:
    net.conv.__dict__["_conv_forward"] = F.relu


def _wrong_child(net: nn.Sequential) -> None:
    net._modules["extra"] = torch.ones(1)  # type: ignore[assignment]


def _wrong_parameter(net: nn.Sequential) -> None:
    net.fc._parameters["extra"] = nn.ReLU()  # type: ignore[assignment]


def _no_registry(net: nn.Sequential) -> None:
    del net.fc.__dict__["_buffers"]


@pytest.mark.parametrize("change", [_shadow, _hook, _call, _wrong_child, _wrong_parameter, _no_registry])
def test_a_module_must_do_what_its_class_does(file: Path, change: Callable[..., None]) -> None:
    net = small_net()
    change(net)
    torch.save(net, file)
    assert "refused" in refusal(file, inputs=INPUT)
