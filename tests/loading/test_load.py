"""Loading: every kind of file is known by its content, every bad file has one clear message."""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from model_files import INPUT, refusal, small_net
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions


@pytest.mark.parametrize("name", ["model.pt", "no_suffix", "wrong.onnx", "wrong.safetensors"])
def test_the_kind_is_recognised_from_the_content(tmp_path: Path, name: str) -> None:
    net, path = small_net(), tmp_path / name
    torch.save(net, path)
    subject = load(path, SourceOptions(inputs=INPUT))
    assert (subject.kind, subject.source, subject.program) == ("module", str(path), None)
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))
    assert not subject.model.training


def test_the_sha256_is_of_the_file(file: Path) -> None:
    import hashlib

    torch.save(small_net(), file)
    assert load(file, SourceOptions(inputs=INPUT)).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_16", "swin_t", "densenet121", "efficientnet_b0", "mobilenet_v3_small"]
)
def test_a_torchvision_module_loads_with_its_own_classes(file: Path, name: str) -> None:
    if name == "vit_b_16":  # made smaller, because its size is of no interest here
        model: nn.Module = torchvision.models.VisionTransformer(64, 16, 1, 2, 8, 16)
    else:
        model = torchvision.models.get_model(name, weights=None)
    torch.save(model.train(), file)
    subject = load(file, SourceOptions(inputs=["1x3x64x64"]))
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
    subject = load(file, SourceOptions(inputs=["1x5x8"]))
    assert subject.model[0].activation is net[0].activation
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))


def test_class_and_partial_attributes_are_the_real_ones(file: Path) -> None:
    net = small_net()
    net.made_by = nn.BatchNorm2d
    net.norms = {"layer": [functools.partial(nn.LayerNorm, eps=1e-6)], "size": (nn.ReLU, 3)}
    torch.save(net, file)
    model: Any = load(file, SourceOptions(inputs=INPUT)).model
    assert model.made_by is nn.BatchNorm2d
    assert model.norms["size"] == (nn.ReLU, 3)
    [partial] = model.norms["layer"]
    assert (partial.func, partial.keywords) == (nn.LayerNorm, {"eps": 1e-6})


def test_data_parallel_is_taken_off(file: Path) -> None:
    torch.save(nn.DataParallel(small_net()), file)
    assert isinstance(load(file, SourceOptions(inputs=INPUT)).model, nn.Sequential)


@pytest.mark.parametrize("key", ["model", "ema", "net", "anything"])
def test_a_module_inside_a_checkpoint_is_found(file: Path, key: str) -> None:
    torch.save({"epoch": 3, key: small_net(), "optimizer": {"state": {}, "param_groups": []}}, file)
    assert load(file, SourceOptions(inputs=INPUT)).kind == "module"


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
    "one byte": (lambda path: path.write_bytes(b"\x80"), "cannot be read as a pickle"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a dict with a"),
    "ONNX": (_onnx, "it has no nodes"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "web page": (lambda path: path.write_text("<html>404</html>"), "HTML"),
    "tensor": (lambda path: torch.save(torch.ones(2), path), "a Tensor"),
    "empty dict": (lambda path: torch.save({}, path), "a dict with nothing in it"),
    "log": (lambda path: torch.save({"loss": [1.0], "epoch": 3}, path), "a dict with loss, epoch"),
    "two networks": (
        lambda path: torch.save({"netG": small_net().state_dict(), "netD": small_net().state_dict()}, path),
        "weights at 'netG' (9 tensors), 'netD' (9 tensors)",
    ),
    "checkpoint in itself": (_cycle, "a dict with epoch, model"),
    "state dict": (lambda path: torch.save(small_net().state_dict(), path), "--arch torchvision:resnet50"),
}


def _legacy(path: Path) -> None:
    torch.save(small_net(), path, _use_new_zipfile_serialization=False)


OTHER_FORMS: dict[str, Callable[[Path], Any]] = {
    "torch before 1.6": _legacy,
    "a pickle alone": lambda path: path.write_bytes(pickle.dumps(small_net())),
    "a pickle of an older protocol": lambda path: path.write_bytes(pickle.dumps(small_net(), protocol=2)),
    **{
        f"protocol {number}": lambda path, number=number: torch.save(small_net(), path, pickle_protocol=number)  # type: ignore[misc]
        for number in (3, 4, 5)
    },
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_module_in_another_form_is_read(file: Path, form: str) -> None:
    torch.manual_seed(0)
    OTHER_FORMS[form](file)
    torch.manual_seed(0)
    net, subject = small_net(), load(file, SourceOptions(inputs=INPUT))
    assert subject.kind == "module"
    assert torch.equal(subject.model(*subject.inputs), net(*subject.inputs))


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
        subject = load(file, SourceOptions(inputs=spec))
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
    load(file, SourceOptions(inputs=INPUT))
