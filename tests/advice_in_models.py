"""More situations in which an error gives advice: data, tracing, ranking, training."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from advice_situations import Situation, Small
from slim_model import Recipe, slim
from slim_model.data.open_data import open_data
from slim_model.folders.depth import check_depth
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.reading.families import FAMILIES
from slim_model.graph.options import TracingOptions
from slim_model.loading.given.place_inputs import make_arguments
from slim_model.loading.input_spec import parse_input
from slim_model.measuring.machine import check_device
from slim_model.pipeline.compile import compile_model
from slim_model.proof.capture import capture
from slim_model.training.resume import Resume
from small_nets import trained

_X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
_CLASSES = torch.arange(40) % 3


def _slim(model: Any = None, x: Any = None, **options: Any) -> Callable[[Path], Any]:
    return lambda _: slim(trained(model() if model else Small()), _X[:4] if x is None else x, multiple_of=1, **options)


# -- data -----------------------------------------------------------------------------------------------------------


def _read(make: Callable[[Path], str], *shape: int) -> Callable[[Path], Any]:
    return lambda folder: list(open_data(make(folder), (torch.zeros(1, *shape or (3,)),)).batches())


def _array(folder: Path) -> str:
    np.savez(folder / "d.npz", x=np.zeros((40, 3), "f4"))
    return f"npz:{folder}/d.npz"


def _no_array(folder: Path) -> str:
    with zipfile.ZipFile(folder / "d.npz", "w") as archive:
        archive.writestr("x", "no array")
    return f"npz:{folder}/d.npz"


def _picture(folder: Path) -> str:
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
        for number in range(5):
            Image.new("RGB", (8, 8)).save(folder / "pictures" / name / f"{number}.png")
    return f"imagefolder:{folder}/pictures"


def _damaged_picture(folder: Path) -> str:
    spec = _picture(folder)
    for path in (folder / "pictures" / "cat").iterdir():
        path.write_bytes(b"no picture")
    return spec


def _test_alone(folder: Path) -> str:
    Path(_picture(folder).partition(":")[2]).rename(folder / "test")
    (folder / "all").mkdir()
    (folder / "test").rename(folder / "all" / "test")
    return f"imagefolder:{folder}/all"


def _yolo(described: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        _picture(folder)
        (folder / "data.yaml").write_text(described)
        return f"yolo:{folder}/data.yaml"

    return make


_PARTS = "train: pictures/cat\nval: pictures/dog\n"


# -- folders --------------------------------------------------------------------------------------------------------


def _folder(kind: str) -> Callable[[Path], Any]:
    """What a folder of two layers says of itself; nothing here runs it."""
    config = {"model_type": kind, "architectures": [""], "num_hidden_layers": 2, "intermediate_size": 8}

    def write(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(config))
        names = [f"{FAMILIES[kind].cuts[0].layers}.{layer}.weight" for layer in range(2)]
        save_file({name: torch.zeros(4, 4) for name in names}, folder / "model.safetensors")
        return folder

    return write


def _shallower(kind: str, layers: int, *, has_data: bool = True) -> Callable[[Path], Any]:
    return lambda folder: check_depth(open_checkpoint_folder(_folder(kind)(folder)), layers, has_data=has_data)


# -- ranking, training ----------------------------------------------------------------------------------------------


class _Smooth(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class _Mixed(Small):
    """Each sample is compared with the others of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.b(y - y.mean(0, keepdim=True))


def _with_nan(folder: Path) -> Any:
    model = trained(Small())
    with torch.no_grad():
        model.a.weight[3, 2] = torch.nan
    return slim(model, _X[:4], multiple_of=1)


class _Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def _of_maps(*shape: int) -> Callable[[Path], Any]:
    return lambda _: capture(trained(_Maps()), (torch.randn(*shape),), TracingOptions(dynamic=("2",)))


class _Branches(_Maps):
    """Goes another way by its values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


class _ByHeight(_Maps):
    """Does another thing at other heights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (
            2.0 if torch.jit.is_scripting() or (type(x.shape[2]) is int and x.shape[2] != 8) else 1
        )


def _maps(model: Any, **options: Any) -> Callable[[Path], Any]:
    return lambda _: capture(trained(model()), (torch.ones(2, 3, 8, 8),), TracingOptions(**options))


class _Loud(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e38 * 1e38


def _scanned(folder: Path, first: float = 0.5) -> Any:
    """The scan that another model left is used again."""
    data = {"data": _X, "allocate": "sensitivity", "scan": folder / "scan.jsonl"}
    slim(trained(Small(), 1), _X[:4], multiple_of=1, **data)
    return slim(trained(Small(), 2), _X[:4], multiple_of=1, **data)


def _resumed(identity: str) -> Callable[[Path], Any]:
    def resume(folder: Path) -> Any:
        Resume(folder / "out.finetune").save({"ratio": "0.5"}, {"epoch": 1})
        return Resume(folder / "out.finetune").load({"ratio": identity})

    return resume


def _device(name: str) -> Callable[[Path], Any]:
    def check(_: Path) -> None:
        with mock.patch("torch.cuda.is_available", return_value=False):
            check_device(name)

    return check


def _lr(rate: float) -> Callable[[Path], Any]:
    options = {"data": (_X, _CLASSES), "finetune": 1, "lr": rate, "optimizer": "sgd", "batch": 8, "multiple_of": 1}
    return lambda _: compile_model(trained(Small()), (_X[:4],), Recipe.of(**options))


IN_MODELS: dict[str, Situation] = {
    # data
    "Give 5 or more.": Situation(_slim(data=_X[:3]), _slim(data=_X[:5])),
    "Write the file with numpy.savez.": Situation(_read(_no_array), _read(_array)),
    "Mend it, or take it out of the folder.": Situation(_read(_damaged_picture, 3, 8, 8), _read(_picture, 3, 8, 8)),
    "Name the other {}, or give one folder with a folder for each class.": Situation(
        _read(_test_alone, 3, 8, 8), _read(_picture, 3, 8, 8)
    ),
    "Write train:": Situation(_read(_yolo("- a"), 3, 8, 8), _read(_yolo(_PARTS), 3, 8, 8)),
    "Name a folder of pictures.": Situation(_read(_yolo("val: a"), 3, 8, 8), _read(_yolo(_PARTS), 3, 8, 8)),
    # folders
    "Give the model file in it, or the folder of a transformers model as save_pretrained() writes it.": Situation(
        open_checkpoint_folder, lambda folder: open_checkpoint_folder(_folder("llama")(folder))
    ),
    "add --data text:FILE, or imagefolder:FOLDER for pictures.": Situation(
        _shallower("llama", 1, has_data=False), _shallower("llama", 1)
    ),
    "Give a smaller number.": Situation(_shallower("llama", 2), _shallower("llama", 1)),
    "Leave out --depth.": Situation(
        _shallower("clip", 1), lambda folder: open_checkpoint_folder(_folder("clip")(folder))
    ),
    # tracing
    "give an example with 2 or more there.": Situation(_of_maps(2, 3, 1, 8), _of_maps(2, 3, 8, 8)),
    "Leave them out of dynamic, or change that.": Situation(_maps(_Branches, dynamic=("2",)), _maps(_Branches)),
    "Leave them out of dynamic.": Situation(_maps(_ByHeight, dynamic=("2",)), _maps(_ByHeight)),
    "Check that the model runs on them.": Situation(
        lambda _: capture(trained(Small()), (_X[:4, :5],)), lambda _: capture(trained(Small()), (_X[:4],))
    ),
    "Give one or the other.": Situation(
        lambda _: make_arguments(Small(), [parse_input("x=2x6"), parse_input("x.a=2x6")], 0),
        lambda _: make_arguments(Small(), [parse_input("x.a=2x6")], 0),
    ),
    # ranking, training
    "Use another criterion, or leave the layer as it is:": Situation(
        _slim(_Smooth, criterion="apoz", data=_X), _slim(_Smooth, criterion="variance", data=_X)
    ),
    "Use a criterion of weights.": Situation(_slim(_Mixed, criterion="variance", data=_X), _slim(_Mixed)),
    "Check the model's weights.": Situation(_with_nan, _slim()),
    "Leave out measure=accuracy.": Situation(
        _slim(data=_X, allocate="sensitivity:measure=accuracy"), _slim(data=_X, allocate="sensitivity")
    ),
    "Give class numbers from 0, one for each sample, or a loss of your own:": Situation(
        _slim(data=(_X, _CLASSES + 7), criterion="taylor"), _slim(data=(_X, _CLASSES), criterion="taylor")
    ),
    "Check inputs, labels and weights.": Situation(
        _slim(_Loud, data=(_X, _CLASSES), criterion="taylor"), _slim(data=(_X, _CLASSES), criterion="taylor")
    ),
    "Give another file, or delete it.": Situation(_scanned, _slim(data=_X, allocate="sensitivity")),
    "Give the same command to go on with that one, or remove the file to begin anew.": Situation(
        _resumed("0.7"), _resumed("0.5")
    ),
    "Leave the option out to use the CPU.": Situation(_device("cuda"), _device("cpu")),
    "Give a smaller rate than --lr {}, or check the data.": Situation(_lr(1e30), _lr(1e-3)),
}
"""By the advice that is given and followed in them."""
