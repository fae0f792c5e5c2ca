"""Loading: every kind of file, every bad file one clear message, and nothing in an untrusted file runs."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import io
import json
import math
import os
import pickle
import sys
import textwrap
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.fx.graph_module import reduce_graph_module

from slim_model.errors import InputError
from slim_model.loading.example_inputs import guess_inputs
from slim_model.loading.input_spec import parse_input
from slim_model.loading.load import load

_DATA = Path(os.environ.get("SLIM_MODEL_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (_DATA / "weights").is_dir(), reason=f"no weights in {_DATA}; set SLIM_MODEL_DATA to the folder with them"
)


def small_net(classes: int = 3) -> nn.Sequential:
    """Takes 3x8x8 only: 4*6*6 = 144 numbers reach the last layer."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(144, classes),
        )
    ).eval()


INPUT = ["1x3x8x8"]
NET_SOURCE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, classes=3):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(144, classes)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).flatten(1))
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The nets here are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "in.pt"


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that code from a malicious model would create."""
    return tmp_path / "ran"


@pytest.fixture
def clean_imports() -> Iterator[None]:
    """Scripts that a test loads are forgotten afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith(("torch", "timm")):
            del sys.modules[name]
    sys.path[:] = path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        load(path, **options)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------- what can be loaded


@pytest.mark.parametrize("name", ["model.pt", "no_suffix", "wrong.onnx", "wrong.safetensors"])
def test_the_kind_is_recognised_from_the_content(tmp_path: Path, name: str) -> None:
    net, path = small_net(), tmp_path / name
    torch.save(net, path)
    subject = load(path, inputs=INPUT)
    assert (subject.kind, subject.source, subject.program) == ("module", str(path), None)
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))
    assert not subject.model.training


def test_the_sha256_is_of_the_file(file: Path) -> None:
    import hashlib

    torch.save(small_net(), file)
    assert load(file, inputs=INPUT).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_16", "swin_t", "densenet121", "efficientnet_b0", "mobilenet_v3_small"]
)
def test_a_torchvision_module_loads_with_its_own_classes(file: Path, name: str) -> None:
    if name == "vit_b_16":  # made smaller, because its size is of no interest here
        model: nn.Module = torchvision.models.VisionTransformer(64, 16, 1, 2, 8, 16)
    else:
        model = torchvision.models.get_model(name, weights=None)
    torch.save(model.train(), file)
    subject = load(file, inputs=["1x3x64x64"])
    assert type(subject.model) is type(model)
    assert torch.equal(subject.model(*subject.inputs), model.eval()(*subject.inputs))
    torch.save(subject.model, io.BytesIO())  # nothing in it stands for something else


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True), nn.Linear(8, 2))
        for activation in ("relu", "gelu", F.silu)
    ],
)
def test_attributes_that_are_activations_are_kept(file: Path, net: nn.Sequential) -> None:
    torch.save(net.eval(), file)
    subject = load(file, inputs=["1x5x8"])
    assert subject.model[0].activation is net[0].activation
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))


def test_class_and_partial_attributes_are_the_real_ones(file: Path) -> None:
    net = small_net()
    net.made_by = nn.BatchNorm2d
    net.norms = {"layer": [functools.partial(nn.LayerNorm, eps=1e-6)], "size": (nn.ReLU, 3)}
    torch.save(net, file)
    model: Any = load(file, inputs=INPUT).model
    assert model.made_by is nn.BatchNorm2d
    assert model.norms["size"] == (nn.ReLU, 3)
    [partial] = model.norms["layer"]
    assert (partial.func, partial.keywords) == (nn.LayerNorm, {"eps": 1e-6})


def test_data_parallel_is_taken_off(file: Path) -> None:
    torch.save(nn.DataParallel(small_net()), file)
    assert isinstance(load(file, inputs=INPUT).model, nn.Sequential)


@pytest.mark.parametrize("key", ["model", "ema", "net", "anything"])
def test_a_module_inside_a_checkpoint_is_found(file: Path, key: str) -> None:
    torch.save({"epoch": 3, key: small_net(), "optimizer": {"state": {}, "param_groups": []}}, file)
    assert load(file, inputs=INPUT).kind == "module"


def test_an_image_model_is_given_224(file: Path) -> None:
    torch.save(torchvision.models.resnet18(), file)
    assert tuple(load(file).inputs[0].shape) == (1, 3, 224, 224)


def test_a_timm_module_loads(file: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit").eval()  # holds an enum and its usual input size
    torch.save(model, file)
    subject = load(file)
    assert tuple(subject.inputs[0].shape) == (1, 3, 160, 160)
    assert torch.equal(subject.model(*subject.inputs), model(*subject.inputs))


def test_timm_that_is_not_installed_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet"), file)
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without("timm"), *sys.meta_path])
    assert "pip install timm" in refusal(file)
    torch.save(small_net().state_dict(), file)
    assert "pip install timm" in refusal(file, arch="timm:test_resnet")


class _Without:
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: Any) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model_state_dict": s, "epoch": 1}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_state_dict_is_found_and_its_prefix_dropped(
    tmp_path: Path, file: Path, wrap: Any, prefix: str, legacy: bool, clean_imports: None
) -> None:
    (tmp_path / "net.py").write_text(textwrap.dedent(NET_SOURCE))
    state = {prefix + name: torch.full(shape, 0.5) for name, shape in _SHAPES.items()}
    torch.save(wrap(state), file, _use_new_zipfile_serialization=not legacy)
    subject = load(file, arch=f"{tmp_path}/net.py:Net", inputs=INPUT)
    assert subject.kind == "state dict"
    assert all(bool((value == 0.5).all()) for value in subject.model.state_dict().values())


_SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (3, 144), "fc.bias": (3,)}


def test_safetensors_load(tmp_path: Path) -> None:
    model, path = torchvision.models.squeezenet1_1(num_classes=5).eval(), tmp_path / "w"
    safetensors.torch.save_file(model.state_dict(), path, metadata={"plan": "ignored"})
    # the number of classes follows from the weights
    subject = load(path, arch="torchvision:squeezenet1_1", inputs=["1x3x64x64"])
    assert torch.equal(subject.model(*subject.inputs), model(*subject.inputs))


@pytest.mark.parametrize("arch", ["timm:test_resnet", "timm:test_resnet(num_classes=7)"])
def test_timm_architectures(file: Path, arch: str) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), file)
    assert load(file, arch=arch).model.num_classes == 7  # type: ignore[union-attr]


def test_torchvision_auxiliary_heads_follow_the_file(file: Path) -> None:
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), file)
    assert load(file, arch="torchvision:lraspp_mobilenet_v3_large", inputs=["1x3x64x64"]).kind == "state dict"
    with_aux = torchvision.models.GoogLeNet(num_classes=4, aux_logits=True, init_weights=False)
    for model in (with_aux, torchvision.models.GoogLeNet(num_classes=4, aux_logits=False, init_weights=False)):
        torch.save(model.state_dict(), file)
        assert load(file, arch="torchvision:googlenet", inputs=["1x3x64x64"]).model.aux_logits is model.aux_logits


def test_architectures_from_a_package_an_instance_and_with_arguments(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, clean_imports: None
) -> None:
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(textwrap.dedent(NET_SOURCE) + "\nready = Net(5)\n")
    monkeypatch.chdir(tmp_path)
    torch.save(
        {name: torch.zeros(5, *shape[1:]) if "fc" in name else torch.zeros(shape) for name, shape in _SHAPES.items()},
        file,
    )
    for arch in ("mypackage.nets:Net(5)", "mypackage.nets:Net(classes=5)", "mypackage.nets:ready"):
        assert load(file, arch=arch, inputs=INPUT).model.fc.out_features == 5  # type: ignore[union-attr]


def test_only_tensors_are_taken_from_a_pickled_module_with_arch(
    tmp_path: Path, file: Path, clean_imports: None
) -> None:
    """Classes that are not allowed to load do no harm where only the weights are wanted."""
    (tmp_path / "elsewhere.py").write_text(textwrap.dedent(NET_SOURCE))
    sys.path.insert(0, str(tmp_path))
    net = importlib.import_module("elsewhere").Net()
    torch.save({"model": net, "args": SimpleNamespace(lr=0.1)}, file)
    assert "elsewhere.Net" in refusal(file) or "SimpleNamespace" in refusal(file)
    del sys.modules["elsewhere"]
    (tmp_path / "elsewhere.py").unlink()
    (tmp_path / "net.py").write_text(textwrap.dedent(NET_SOURCE))
    subject = load(file, arch=f"{tmp_path / 'net.py'}:Net", inputs=INPUT)
    assert all(torch.equal(a, b) for a, b in zip(subject.model.parameters(), net.parameters(), strict=True))


def test_main_classes_load_with_trust_and_code(tmp_path: Path, file: Path, ran: Path, clean_imports: None) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(NET_SOURCE)
        + f"\nif __name__ == '__main__':\n    open({str(ran)!r}, 'w').close()\n    torch.save(Net(), {str(file)!r})\n"
    )
    namespace: dict[str, Any] = {"__name__": "__main__"}
    main = sys.modules["__main__"]
    sys.modules["__main__"] = SimpleNamespace(__name__="__main__")  # type: ignore[assignment]
    try:
        sys.modules["__main__"].__dict__.update(namespace)
        exec(compile(script.read_text(), str(script), "exec"), sys.modules["__main__"].__dict__)
    finally:
        sys.modules["__main__"] = main
    ran.unlink()
    message = refusal(file, inputs=INPUT)
    assert "__main__.Net" in message
    assert "--trust-pickle --code path/train.py" in message
    assert "--code" in refusal(file, inputs=INPUT, trust_pickle=True)
    subject = load(file, inputs=INPUT, trust_pickle=True, code=script)
    assert type(subject.model).__name__ == "Net"
    assert type(subject.model).__module__ != "__main__"
    assert not ran.exists()
    script.write_text("x = 1\n")
    assert "does not define" in refusal(file, inputs=INPUT, trust_pickle=True, code=script)
    script.write_text("raise ValueError('no data here')\n")
    assert "ValueError: no data here" in refusal(file, inputs=INPUT, trust_pickle=True, code=script)
    assert "no Python file" in refusal(file, inputs=INPUT, trust_pickle=True, code=tmp_path / "none.py")


def test_a_trusted_file_whose_code_is_missing(tmp_path: Path, file: Path, clean_imports: None) -> None:
    (tmp_path / "gone.py").write_text(textwrap.dedent(NET_SOURCE))
    sys.path.insert(0, str(tmp_path))
    torch.save(importlib.import_module("gone").Net(), file)
    del sys.modules["gone"]
    (tmp_path / "gone.py").unlink()
    importlib.invalidate_caches()
    assert "No module named 'gone'" in refusal(file, trust_pickle=True)


def test_torchscript_loads(file: Path) -> None:
    net = small_net()
    torch.jit.save(torch.jit.script(net), file)
    subject = load(file, inputs=INPUT)
    assert subject.kind == "torchscript"
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))


# ---------------------------------------------------------------------------------------------- torch.export


def exported(net: nn.Module, path: Path, shape: tuple[int, ...] = (2, 3, 8, 8), **options: Any) -> Path:
    torch.export.save(torch.export.export(net, (torch.randn(shape),), **options), path)
    return path


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
    assert tuple(load(path, inputs=["5x3x8x8"]).inputs[0].shape) == (5, 3, 8, 8)
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
    for layer in (nn.BatchNorm2d(3), nn.Dropout()):
        net = nn.Sequential(layer, nn.Conv2d(3, 3, 1)).train()
        assert "model.eval()" in refusal(exported(net, tmp_path / "m.pt2"))


def test_a_program_with_keyword_inputs_needs_input(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(small_net(), (), {"input": torch.randn(2, 3, 8, 8)}), path)
    assert "--input" in refusal(path)


# ---------------------------------------------------------------------------- nothing in an untrusted file runs


class Calls:
    """Pickles as a call of ``function``, which happens when it is unpickled."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def code_that_creates(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()"


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


def rewrite(path: Path, edits: dict[str, Callable[[bytes], bytes]], **extra: bytes) -> Path:
    """Change the records of an archive; ``edits`` maps a name inside it to what happens to its bytes."""
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    for name, edit in edits.items():
        changed = edit(records.get(name, b""))
        assert changed != records.get(name)
        records[name] = changed
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (records | extra).items():
            archive.writestr(f"in/{name}", content)
    return path


@pytest.fixture
def evil_module(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("evil_module.py", "hubconf.py"):
        ran.with_name(name).write_text(f"{code_that_creates(ran)}\ndef net(): pass\n")
    monkeypatch.syspath_prepend(str(ran.parent))
    monkeypatch.chdir(ran.parent)


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
        load(file, inputs=INPUT, arch="torchvision:squeezenet1_1")
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
    load(file, inputs=INPUT, trust_pickle=True)
    assert ran.exists()


def test_no_constructor_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(small_net(), file)
    monkeypatch.setattr(nn.Linear, "__init__", lambda *_: pytest.fail("a constructor ran"))
    load(file, inputs=INPUT)


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


# -------------------------------------------------------------------------------------------------- bad files


def _truncated(path: Path) -> None:
    torch.save(small_net(), path)
    path.write_bytes(path.read_bytes()[:-300])


def _flipped(path: Path) -> None:
    torch.save(small_net().state_dict(), path)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)


def _truncated_legacy(path: Path) -> None:
    torch.save(small_net().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-300])


def _truncated_safetensors(path: Path) -> None:
    safetensors.torch.save_file(small_net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.jpg", b"meow")


def _empty_zip(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def _zip_with_names_only(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"in/{name}", b"nonsense")


def _program_with_names_only(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("archive_format", "models/model.json"):
            archive.writestr(f"in/{name}", b"{}")


def _onnx(path: Path) -> None:
    import onnx

    graph = onnx.helper.make_graph([], "g", [], [])
    path.write_bytes(onnx.helper.make_model(graph, producer_name="x").SerializeToString())


def _legacy_module(path: Path) -> None:
    torch.save(small_net(), path, _use_new_zipfile_serialization=False)


def _newer_protocol(path: Path) -> None:
    torch.save(small_net(), path, pickle_protocol=4)


def _cycle(path: Path) -> None:
    held: dict[str, Any] = {"epoch": 1}
    held["model"] = held
    torch.save(held, path)


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "empty": (lambda path: path.touch(), "empty"),
    "truncated": (_truncated, "without its end"),
    "damaged": (_flipped, "cannot be read"),
    "truncated legacy": (_truncated_legacy, "cannot be read"),
    "truncated safetensors": (_truncated_safetensors, "cannot be read"),
    "zip of photos": (_zip, "holds cat.jpg"),
    "empty zip": (_empty_zip, "holds nothing"),
    "zip with the names of TorchScript": (_zip_with_names_only, "cannot be read"),
    "zip with the names of a program": (_program_with_names_only, "cannot be read"),
    "random bytes": (lambda path: path.write_bytes(bytes(range(255, 0, -1))), "no PyTorch model"),
    "text": (lambda path: path.write_text("import torch\n"), "no PyTorch model"),
    "one byte": (lambda path: path.write_bytes(b"\x80"), "torch.save did not write"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "torch.save did not write"),
    "ONNX": (_onnx, "ONNX"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "web page": (lambda path: path.write_text("<html>404</html>"), "HTML"),
    "tensor": (lambda path: torch.save(torch.ones(2), path), "a Tensor"),
    "empty dict": (lambda path: torch.save({}, path), "a dict with nothing in it"),
    "log": (lambda path: torch.save({"loss": [1.0], "epoch": 3}, path), "a dict with loss, epoch"),
    "two networks": (
        lambda path: torch.save({"netG": small_net().state_dict(), "netD": small_net().state_dict()}, path),
        "a dict with netG, netD",
    ),
    "checkpoint in itself": (_cycle, "cannot be read"),
    "legacy module": (_legacy_module, "before 1.6"),
    "newer protocol": (_newer_protocol, "protocol"),
    "state dict": (lambda path: torch.save(small_net().state_dict(), path), "--arch torchvision:resnet50"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_bad_file_has_one_clear_message(file: Path, bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, expected = BAD_FILES[bad]
    make(file)
    assert expected in refusal(file, inputs=INPUT)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file(file: Path) -> None:
    torch.save(small_net(), file)
    file.chmod(0)
    assert "Permission denied" in refusal(file)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["fc.weight", "bn.running_var"])
def test_nan_and_infinity_are_refused_by_name(file: Path, bad: float, name: str) -> None:
    net = small_net()
    net.state_dict()[name].view(-1)[1] = bad
    if name == "bn.running_var":
        net.state_dict()[name][0] = 1
    torch.save(net, file)
    message = refusal(file, inputs=INPUT)
    assert f"{name} holds NaN or infinity (1 of " in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_turned_into_float32(file: Path, dtype: torch.dtype) -> None:
    """Where the input is given in the model's own precision, too."""
    torch.save(small_net().to(dtype), file)
    name = str(dtype).removeprefix("torch.")
    for spec in (INPUT, [f"1x3x8x8:{name}"]):
        subject = load(file, inputs=spec)
        assert {p.dtype for p in subject.model.parameters()} == {torch.float32}
        assert subject.inputs[0].dtype == torch.float32
        assert f"its {name} weights were turned into float32" in subject.notes[-1]


def test_an_exported_program_in_another_precision_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(small_net().double(), (torch.randn(1, 3, 8, 8, dtype=torch.float64),))
    torch.export.save(program, tmp_path / "net.pt2")
    assert "holds float64 weights. Export it again in float32" in refusal(tmp_path / "net.pt2")


def test_an_attention_mask_may_be_infinite(file: Path) -> None:
    net = small_net()
    net.register_buffer("mask", torch.zeros(2, 2).masked_fill(torch.eye(2) == 0, -math.inf))
    torch.save(net, file)
    load(file, inputs=INPUT)


# ------------------------------------------------------------------------------------------ architectures

ARCHS = {
    "torchvision:resnet": "no model 'resnet'",
    "torchvision:resnet17": "Did you mean resnet1",
    "torchvision:resnet18": "missing in the file",
    "torchvision:resnet18(num_classes=__import__('os'))": "plain values",
    "torchvision:resnet18(num_classes=3)(1)": "plain values",
    "torchvision:resnet18(classes=3)": "TypeError",
    "resnet18": "names no model",
    "no.such.package:Net": "No module named 'no'",
    "no/such/file.py:Net": "no Python file",
    "net.py:Nett": "Did you mean Net",
    "net.py:Net()": "weights do not fit",
    "net.py:Broken": "RuntimeError: cannot be made (at ",
    "net.py:not_a_model": "gave a int",
    "net.py:number": "TypeError",
}


@pytest.mark.parametrize("arch", ARCHS)
def test_a_wrong_arch_has_one_clear_message(
    file: Path, arch: str, monkeypatch: pytest.MonkeyPatch, clean_imports: None
) -> None:
    source = textwrap.dedent(NET_SOURCE) + textwrap.dedent(
        """
        number = 3
        def not_a_model(): return 3
        class Broken(nn.Module):
            def __init__(self):
                raise RuntimeError("cannot be made")
        """
    )
    file.with_name("net.py").write_text(source)
    monkeypatch.chdir(file.parent)
    torch.save(small_net().state_dict(), file)
    assert ARCHS[arch] in refusal(file, arch=arch, inputs=INPUT)


def test_weights_that_do_not_fit_are_named(file: Path, clean_imports: None) -> None:
    file.with_name("net.py").write_text(textwrap.dedent(NET_SOURCE))
    state = {name: torch.zeros(shape) for name, shape in _SHAPES.items()}
    state["conv.weight"] = torch.zeros(5, 3, 3, 3)
    state["head.weight"] = state.pop("fc.weight")
    torch.save(state, file)
    message = refusal(file, arch=f"{file.with_name('net.py')}:Net", inputs=INPUT)
    assert "1 missing in the file (fc.weight)" in message
    assert "1 not in the model (head.weight)" in message
    assert "1 of another shape (conv.weight is 5x3x3x3 and should be 4x3x3x3)" in message


# ----------------------------------------------------------------------------------------------- example inputs


def test_parse_input() -> None:
    assert parse_input("1x3x224x224") == ((1, 3, 224, 224), torch.float32)
    assert parse_input(" 1X16:INT64 ") == ((1, 16), torch.int64)
    assert parse_input("4:bool") == ((4,), torch.bool)


@pytest.mark.parametrize(
    "spec", ["", "3,224", "1x", "x3", "1x-3", "1x3:float", "0x3", "1x99999999x9999", "1x3.5", "ax3"]
)
def test_a_bad_input_spec_is_shown_with_an_example(spec: str) -> None:
    with pytest.raises(InputError, match="--input") as raised:
        parse_input(spec)
    assert repr(spec) in str(raised.value)


def test_inputs_are_of_the_dtype_asked_for_and_repeat(file: Path) -> None:
    class Net(nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.double().mean() for x in inputs])

    from slim_model.loading.example_inputs import make_inputs

    specs = [
        parse_input(f"2x50:{name}") for name in ("float32", "float16", "float64", "int64", "int32", "uint8", "bool")
    ]
    first, again, other = (make_inputs(Net(), specs, seed) for seed in (1, 1, 2))
    assert [x.dtype for x in first] == [dtype for _, dtype in specs]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_tokens_are_numbers_that_every_embedding_has() -> None:
    net = nn.ModuleList([nn.Embedding(50, 4), nn.Embedding(7, 4)])
    from slim_model.loading.example_inputs import make_inputs

    [tokens] = make_inputs(net, [((1, 500), torch.int64)], 0)
    assert set(tokens.unique().tolist()) == set(range(7))


def test_an_input_the_model_cannot_run_on(tmp_path: Path, file: Path) -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    torch.save(net, file)
    message = refusal(file, inputs=["1x3"])
    assert "1x3" in message
    assert ":int64" in message
    assert tuple(load(file, inputs=["1x3:int64"]).inputs[0].shape) == (1, 3)


def test_a_forward_that_raises_names_the_users_line(tmp_path: Path, file: Path, clean_imports: None) -> None:
    path = tmp_path / "net.py"
    path.write_text(textwrap.dedent(NET_SOURCE).replace("return self", "raise ValueError('out of luck')  #"))
    torch.save({name: torch.zeros(shape) for name, shape in _SHAPES.items()}, file)
    for options in ({"inputs": INPUT}, {}):
        message = refusal(file, arch=f"{path}:Net", **options)
        assert "ValueError: out of luck" in message
        assert f"{path}:12: raise ValueError" in message
        assert "--input" in message


def test_a_model_without_a_floating_output(file: Path) -> None:
    torch.save(nn.Sequential(nn.Identity()), file)
    assert "no floating point tensor" in refusal(file, inputs=["1x3:int64"])


class Words(nn.Module):
    def __init__(self, recurrent: nn.Module | None = None, pooled: bool = True) -> None:
        super().__init__()
        self.embed, self.fc, self.pooled = nn.Embedding(100, 8), nn.Linear(8, 2), pooled
        self.recurrent = recurrent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        if self.recurrent is not None:
            y = self.recurrent(y)[0]
        return self.fc(y.mean(1) if self.pooled else y)


class HardCoded(nn.Module):
    """The first convolutions of the MNIST example, with its own idea of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 5, 5), nn.Linear(4 * 4 * 5, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.log_softmax(self.fc(x.view(-1, 4 * 4 * 5)), 1)


def pooled(channels: int, *convolutions: nn.Module) -> nn.Module:
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2))


#: A net and the input it must be given.
GUESSES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "view for MNIST": (HardCoded, (1, 1, 28, 28)),
    "flatten at 32": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(900, 2)), (1, 3, 32, 32)),
    "flatten at 64": (lambda: nn.Sequential(nn.Conv2d(3, 2, 3, 4), nn.Flatten(), nn.Linear(512, 2)), (1, 3, 64, 64)),
    "pooled, keeps the size": (lambda: pooled(3, nn.Conv2d(3, 4, 3), nn.ReLU()), (1, 3, 32, 32)),
    "pooled, one channel": (lambda: pooled(1, nn.Conv2d(1, 4, 3, padding=1)), (1, 1, 28, 28)),
    "pooled, strides at once": (lambda: pooled(3, nn.Conv2d(3, 4, 7, 2)), (1, 3, 224, 224)),
    "pooled, shrinks later": (
        lambda: pooled(3, nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(16), nn.Conv2d(4, 4, 1)),
        (1, 3, 224, 224),
    ),
    "numbers": (lambda: nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2)), (1, 20)),
    "words": (Words, (1, 16)),
    "words, GRU": (lambda: Words(nn.GRU(8, 8, batch_first=True)), (1, 16)),
    "fixed number of words": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(80, 2)), (1, 20)),
    "sound": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
        (1, 2, 16),
    ),
    "video": (
        lambda: nn.Sequential(nn.Conv3d(3, 2, 3, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        (1, 3, 16, 112, 112),
    ),
    "subclass of a layer": (lambda: pooled(3, type("MyConv", (nn.Conv2d,), {})(3, 4, 7, 2)), (1, 3, 224, 224)),
    "transformer on vectors": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), MeanOverTime()),
        (1, 16, 6),
    ),
}


class MeanOverTime(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


@pytest.mark.parametrize("name", GUESSES)
def test_the_input_is_guessed(name: str) -> None:
    build, expected = GUESSES[name]
    net = build().eval()
    with torch.no_grad(), contextlib.suppress(Exception):
        net(torch.zeros(expected))  # lazy layers take their size
    [x] = guess_inputs(net, seed=3)
    assert tuple(x.shape) == expected
    assert x.dtype == (torch.int64 if "words" in name else torch.float32)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_guess_is_noted_and_seeded(file: Path) -> None:
    torch.save(Words(), file)
    torch.save(HardCoded().conv1, file)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(900, 2)), file)
    subject = load(file, seed=1)
    assert subject.notes[0] == "no --input was given; 1x3x32x32 was tried and works"
    assert torch.equal(subject.inputs[0], load(file, seed=1).inputs[0])
    assert not torch.equal(subject.inputs[0], load(file, seed=2).inputs[0])


AMBIGUOUS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "fully convolutional": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "--input 1x3x224x224"),
    "a label per word": (lambda: Words(pooled=False), "--input 1x16:int64"),
    "flattens first": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), "1x1x28x28"),
    "generator": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 3, 4)), "--input 1x3x224x224"),
    "no layers": (lambda: nn.Sequential(nn.ReLU()), "--input 1x3x224x224"),
    "batch of one": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(4, 2)), "--input 1x3x224x224"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_cannot_be_guessed_says_what_to_type(name: str) -> None:
    build, expected = AMBIGUOUS[name]
    with pytest.raises(InputError, match="cannot tell the shape") as raised:
        guess_inputs(build().eval())
    assert expected in str(raised.value)


def test_torchscript_layers_tell_the_input(file: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(900, 2)).eval()
    torch.jit.save(torch.jit.script(net), file)
    assert tuple(load(file).inputs[0].shape) == (1, 3, 32, 32)


# --------------------------------------------------------------------------------------------------- real files

RESNET20 = """
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self, old, new, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(old, new, 3, stride, 1, bias=False), nn.BatchNorm2d(new)
            self.conv2, self.bn2 = nn.Conv2d(new, new, 3, 1, 1, bias=False), nn.BatchNorm2d(new)
            self.pad = (new - old) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + (F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x))

    class ResNet(nn.Module):
        def __init__(self, blocks=3):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            layer = lambda old, new: nn.Sequential(
                *(Block(new if i else old, new, 1 if i or old == new else 2) for i in range(blocks))
            )
            self.layer1, self.layer2, self.layer3 = layer(16, 16), layer(16, 32), layer(32, 64)
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
            return self.linear(F.avg_pool2d(x, x.size(3)).flatten(1))
"""


@needs_data
@pytest.mark.parametrize(("name", "blocks"), [("resnet20-12fca82f.th", 3), ("resnet56-4bfd9763.th", 9)])
def test_the_cifar_checkpoints(tmp_path: Path, name: str, blocks: int, clean_imports: None) -> None:
    (tmp_path / "resnet.py").write_text(textwrap.dedent(RESNET20))
    path = _DATA / "weights" / "resnet-cifar10" / name
    assert "holds a state dict" in refusal(path)
    subject = load(path, arch=f"{tmp_path}/resnet.py:ResNet(blocks={blocks})")
    assert tuple(subject.inputs[0].shape) == (1, 3, 32, 32)
    assert "missing in the file" in refusal(path, arch=f"{tmp_path}/resnet.py:ResNet(blocks=10)")


@needs_data
def test_the_vit_checkpoint() -> None:
    path = _DATA / "weights" / "vit-mnist" / "vit_mnist_gpu.pt"
    assert "74 tensors, the first pos_embedding of shape (1, 50, 64)" in refusal(path)


@needs_data
def test_the_onnx_files() -> None:
    for path in sorted((_DATA / "weights").glob("*/*.onnx")):
        assert "ONNX" in refusal(path)
