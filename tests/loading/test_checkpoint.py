"""State dicts and the architectures they are loaded into."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from model_files import INPUT, NET_SOURCE, SHAPES, refusal, small_net
from slim_model.errors import InputError
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions
from slim_model.loading.weights.checkpoint import checkpoint

_DATA = Path(os.environ.get("SLIM_MODEL_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (_DATA / "weights").is_dir(), reason=f"no weights in {_DATA}; set SLIM_MODEL_DATA to the folder with them"
)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model_state_dict": s, "epoch": 1}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_state_dict_is_found_and_its_prefix_dropped(
    tmp_path: Path, file: Path, wrap: Any, prefix: str, legacy: bool, clean_imports: None
) -> None:
    (tmp_path / "net.py").write_text(textwrap.dedent(NET_SOURCE))
    state = {prefix + name: torch.full(shape, 0.5) for name, shape in SHAPES.items()}
    torch.save(wrap(state), file, _use_new_zipfile_serialization=not legacy)
    subject = load(file, SourceOptions(arch=f"{tmp_path}/net.py:Net", inputs=INPUT))
    assert subject.kind == "state dict"
    assert all(bool((value == 0.5).all()) for value in subject.model.state_dict().values())


def test_safetensors_load(tmp_path: Path) -> None:
    model, path = torchvision.models.squeezenet1_1(num_classes=5).eval(), tmp_path / "w"
    safetensors.torch.save_file(model.state_dict(), path, metadata={"plan": "ignored"})
    # the number of classes follows from the weights
    subject = load(path, SourceOptions(arch="torchvision:squeezenet1_1", inputs=["1x3x64x64"]))
    assert torch.equal(subject.model(*subject.inputs), model(*subject.inputs))


@pytest.mark.parametrize("arch", ["timm:test_resnet", "timm:test_resnet(num_classes=7)"])
def test_timm_architectures(file: Path, arch: str) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), file)
    assert load(file, SourceOptions(arch=arch)).model.num_classes == 7  # type: ignore[union-attr]


def test_torchvision_auxiliary_heads_follow_the_file(file: Path) -> None:
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), file)
    assert (
        load(file, SourceOptions(arch="torchvision:lraspp_mobilenet_v3_large", inputs=["1x3x64x64"])).kind
        == "state dict"
    )
    with_aux = torchvision.models.GoogLeNet(num_classes=4, aux_logits=True, init_weights=False)
    for model in (with_aux, torchvision.models.GoogLeNet(num_classes=4, aux_logits=False, init_weights=False)):
        torch.save(model.state_dict(), file)
        assert (
            load(file, SourceOptions(arch="torchvision:googlenet", inputs=["1x3x64x64"])).model.aux_logits
            is model.aux_logits
        )


def test_architectures_from_a_package_an_instance_and_with_arguments(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, clean_imports: None
) -> None:
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(textwrap.dedent(NET_SOURCE) + "\nready = Net(5)\n")
    monkeypatch.chdir(tmp_path)
    torch.save(
        {name: torch.zeros(5, *shape[1:]) if "fc" in name else torch.zeros(shape) for name, shape in SHAPES.items()},
        file,
    )
    for arch in ("mypackage.nets:Net(5)", "mypackage.nets:Net(classes=5)", "mypackage.nets:ready"):
        assert load(file, SourceOptions(arch=arch, inputs=INPUT)).model.fc.out_features == 5  # type: ignore[union-attr]


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
    subject = load(file, SourceOptions(arch=f"{tmp_path / 'net.py'}:Net", inputs=INPUT))
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
    with pytest.raises(InputError, match="add --trust-pickle where you made the file yourself"):
        SourceOptions(inputs=INPUT, code=script)
    assert "--code" in refusal(file, inputs=INPUT, trust_pickle=True)
    subject = load(file, SourceOptions(inputs=INPUT, trust_pickle=True, code=script))
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
    state = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    state["conv.weight"] = torch.zeros(5, 3, 3, 3)
    state["head.weight"] = state.pop("fc.weight")
    torch.save(state, file)
    message = refusal(file, arch=f"{file.with_name('net.py')}:Net", inputs=INPUT)
    assert "1 missing in the file (fc.weight)" in message
    assert "1 not in the model (head.weight)" in message
    assert "1 of another shape (conv.weight is 5x3x3x3 and should be 4x3x3x3)" in message


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
    subject = load(path, SourceOptions(arch=f"{tmp_path}/resnet.py:ResNet(blocks={blocks})"))
    assert tuple(subject.inputs[0].shape) == (1, 3, 32, 32)
    assert "missing in the file" in refusal(path, arch=f"{tmp_path}/resnet.py:ResNet(blocks=10)")


@needs_data
def test_the_vit_checkpoint() -> None:
    path = _DATA / "weights" / "vit-mnist" / "vit_mnist_gpu.pt"
    assert "74 tensors, the first pos_embedding of shape (1, 50, 64)" in refusal(path)


@needs_data
def test_the_onnx_files() -> None:
    for path in sorted((_DATA / "weights").glob("*/*.onnx")):
        assert load(path).kind == "onnx"


def test_plain_values_beside_the_model_are_kept() -> None:
    """Of a dict with other things those are left out, as what holds itself is; of a long one all is. Looking through
    twice the same thing sixty times over takes no time."""
    plain = {"epoch": 3, "best": None, "train_args": {"imgsz": 64, "classes": ["a", "b"], "mixup": (0.5, True)}}
    itself: dict[str, Any] = {"epoch": 1}
    itself["again"] = itself
    doubled: Any = 0
    for _ in range(60):
        doubled = [doubled, doubled]
    beside = {"by_number": {0: "a"}, "itself": itself, "doubled": doubled, "weights": {"a": torch.zeros(2)}}
    long = {"tensor": torch.zeros(1)} | {str(n): [n] for n in range(1000)}
    assert checkpoint(plain | beside | {"long": long}).beside == plain | {"itself": {"epoch": 1}}
