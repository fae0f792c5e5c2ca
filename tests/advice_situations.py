"""Situations in which an error gives advice, and what it says followed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim_model import Recipe, slim
from slim_model.atomic_write import beside
from slim_model.commands.outputs import check_output_paths
from slim_model.data.open_data import open_data
from slim_model.export.opsets import check_opset, newest_opset
from slim_model.graph.options import TracingOptions
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions
from slim_model.proof.capture import capture
from slim_model.reporting.condition import read_condition
from small_nets import Residual, images, trained


@dataclass(frozen=True, slots=True)
class Situation:
    """``given`` raises an error with the advice; ``followed`` does what it says, and raises none."""

    given: Callable[[Path], Any]
    followed: Callable[[Path], Any]


def _recipe(given: dict[str, Any], followed: dict[str, Any]) -> Situation:
    return Situation(lambda _: Recipe.of(**given), lambda _: Recipe.of(**followed))


# -- data -----------------------------------------------------------------------------------------------------------

_ROWS = torch.zeros(40, 3)
_EXAMPLE = (torch.zeros(2, 3),)


def _read(source: Any, **options: Any) -> Any:
    return list(open_data(source, _EXAMPLE, **options).batches())


def _data(given: Any, followed: Any) -> Situation:
    return Situation(lambda _: _read(given), lambda _: _read(followed))


def _npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "d.npz", **arrays)
    return f"npz:{folder}/d.npz"


def _table(folder: Path, options: str, content: bytes = b"text,label\nlong,0\nword,1\n") -> str:
    (folder / "t.csv").write_bytes(content)
    (folder / "own.py").write_text("import torch\ndef three(texts): return torch.ones(len(texts), 3)\n")
    return f"csv:{folder}/t.csv{options.format(f'tokenizer={folder}/own.py:three')}"


def _text_file(folder: Path) -> str:
    (folder / "d.npz").write_text("no archive")
    return f"npz:{folder}/d.npz"


def _with_nan() -> Tensor:
    rows = _ROWS.clone()
    rows[3] = torch.nan
    return rows


# -- files ----------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Takes ``(N, 6)``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Maps(nn.Module):
    """Takes pictures of any size, and gives as large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


class Prints(Small):
    """Returns no tensor of floats."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


ARCH = f"{__file__}:Small"


def _saved(folder: Path, held: Any, name: str = "in.pt") -> Path:
    torch.save(held, folder / name)
    return folder / name


def _load(path: Path, **options: Any) -> Any:
    return load(path, SourceOptions(**{"arch": ARCH, "inputs": ["2x6"]} | options))


def _spoiled() -> dict[str, Tensor]:
    return Small().state_dict() | {"a.bias": torch.full((8,), torch.nan)}


def _exported(folder: Path, net: nn.Module, *, dtype: torch.dtype = torch.float32) -> Path:
    torch.export.save(torch.export.export(net, (torch.randn(2, 6, dtype=dtype),)), folder / "in.pt2")
    return folder / "in.pt2"


def _program(folder: Path, net: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    return load(_exported(folder, net, dtype=dtype), SourceOptions())


class Dropping(Small):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


def _several() -> dict[str, Any]:
    return {"one": trained(Small(), 1).state_dict(), "two": trained(Small(), 2).state_dict()}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _place(make: Callable[[Path], Path]) -> Callable[[Path], Any]:
    return lambda folder: check_output_paths(folder / "in.pt", [make(folder)])


def _write_beside(path: Path) -> None:
    with beside(path) as temporary:
        temporary.write_text("new")


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _script(folder: Path, runs: str) -> Path:
    (folder / "script.py").write_text(f"import torch\n{runs}\ndef data(): return torch.zeros(40, 3)\n")
    return folder / "script.py"


_GUARDED = 'if __name__ == "__main__": 1 / 0'


def _of_a_script(folder: Path) -> Path:
    """A module whose class is of the script that saved it."""
    code = "from torch import nn\nclass Net(nn.Sequential): pass\n"
    (folder / "train.py").write_text(code)
    main: dict[str, Any] = {"__name__": "__main__"}
    exec(code, main)
    sys.modules["__main__"].Net = main["Net"]  # type: ignore[attr-defined]
    try:
        return _saved(folder, main["Net"](nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    finally:
        del sys.modules["__main__"].Net  # type: ignore[attr-defined]


def _finetuned(**options: Any) -> Any:
    data = images(40), torch.arange(40) % 5
    return slim(trained(Residual()), images(2), ratio=0.5, multiple_of=1, data=data, finetune=1, **options)


class _Net:
    """What ``slim`` is called with."""

    model, x = trained(Small()), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def _slim(**options: Any) -> Callable[[Path], Any]:
    return lambda _: slim(_Net.model, _Net.x, ratio=0.5, multiple_of=1, **options)


_GOOD = _place(lambda folder: folder / "out.onnx")

SITUATIONS: dict[str, Situation] = {
    # options
    "Give one of them.": _recipe({"of": "params", "target": "macs=1M"}, {"target": "macs=1M"}),
    "leave out --engine {}.": _recipe({"attention": "heads", "engine": "torch-pruning"}, {"attention": "heads"}),
    "leave out --no-bench.": _recipe({"min_speedup": 1.5, "bench": False}, {"min_speedup": 1.5}),
    "add --data SPEC, or data=batches in Python.": _recipe({"recover": "full"}, {"recover": "full", "data": _ROWS}),
    "add --data SPEC, or data= in Python.": _recipe(
        {"allocate": "sensitivity", "target": "macs=1M"},
        {"allocate": "sensitivity", "target": "macs=1M", "data": _ROWS},
    ),
    "give --data, or data= in Python.": _recipe({"finetune": 1}, {"finetune": 1, "data": _ROWS}),
    "add --data SPEC, such as mnist:DIR or imagefolder:DIR, or data=batches in Python.": _recipe(
        {"criterion": "variance"}, {"criterion": "variance", "data": _ROWS}
    ),
    "leave out --no-distill, or --hints.": _recipe(
        {"hints": 1.0, "distill": False}, {"hints": 1.0, "finetune": 1, "data": _ROWS}
    ),
    "leave out one.": _recipe({"static_batch": True, "dynamic": (0,)}, {"static_batch": True}),
    "give finite numbers{}.": _recipe({"std": (float("inf"),)}, {"std": (0.5,)}),
    "Write {}:option=value.": _recipe(
        {"allocate": "sensitivity:x", "data": _ROWS}, {"allocate": "sensitivity:measure=error", "data": _ROWS}
    ),
    "leave it out, and time the module yourself.": Situation(_slim(min_speedup=1.0), _slim()),
    "Write one of {}, then >=, <=, > or <, then a number, such as 'accuracy>=0.91'.": Situation(
        lambda _: read_condition("accuracy"), lambda _: read_condition("accuracy>=0.91")
    ),
    "Ask for {} or an older one.": Situation(lambda _: check_opset(99), lambda _: check_opset(newest_opset())),
    # inputs
    "Give at least one, such as torch.randn(1, 3, 224, 224).": Situation(
        lambda _: slim(trained(Residual()), ()), lambda _: slim(trained(Residual()), images())
    ),
    "Give a tensor of that shape:": Situation(
        lambda _: slim(trained(Small()), (4, 6)), lambda _: slim(trained(Small()), torch.randn(4, 6))
    ),
    # data
    "Give class numbers from 0.": _data((_ROWS, _ROWS[:, 0].to(torch.complex64)), (_ROWS, torch.arange(40) % 3)),
    "Give batches of the inputs, or of the inputs and labels.": _data([(_ROWS,) * 4], [(_ROWS, _ROWS[:, 0])]),
    "Give data of that size, or the size of the data as --input.": _data(torch.zeros(40, 4), _ROWS),
    "give one number, or one for each channel, and no std of 0.": Situation(
        lambda _: _read(_ROWS, mean=(1.0, 2.0)), lambda _: _read(_ROWS, mean=(1.0, 2.0, 3.0))
    ),
    "give as many of each.": _data((_ROWS, torch.zeros(4)), (_ROWS, torch.zeros(40))),
    "Mend it, or leave it out.": _data(_with_nan(), _with_nan()[4:]),
    "Give tensors, a data set, or batches that can be gone through.": _data(lambda: None, lambda: _ROWS),
    "Mend it there, or give other data.": _data(lambda: 1 / 0, lambda: _ROWS),
    "name the inputs x and the labels y.": Situation(
        lambda folder: _read(_npz(folder, one=_ROWS, two=_ROWS)), lambda folder: _read(_npz(folder, x=_ROWS.numpy()))
    ),
    "Write it with numpy.savez, of plain numbers.": Situation(
        lambda folder: _read(_text_file(folder)), lambda folder: _read(_npz(folder, x=_ROWS.numpy()))
    ),
    "Give numbers, a row a sample.": Situation(
        lambda folder: _read(_npz(folder, x=np.array(["a"] * 40))),
        lambda folder: _read(_npz(folder, x=_ROWS.numpy())),
    ),
    "say how texts become numbers, with tokenizer=package.module:callable.": Situation(
        lambda folder: _read(_table(folder, "")), lambda folder: _read(_table(folder, ",{}"))
    ),
    "give text=NAME or text=0.": Situation(
        lambda folder: _read(_table(folder, ",{},text=body")), lambda folder: _read(_table(folder, ",{},text=label"))
    ),
    "Write it in UTF-8, a row a text.": Situation(
        lambda folder: _read(_table(folder, ",{}", b"text,label\n\xff\xfe,0\n")),
        lambda folder: _read(_table(folder, ",{}", "text,label\nüber,0\nunter,1\n".encode())),
    ),
    # files that are read
    "Give the model file in it.": Situation(_load, lambda folder: _load(_saved(folder, Small().state_dict()))),
    "Give a file written by torch.save, safetensors, torch.export.save or torch.jit.save, or an ONNX file.": Situation(
        lambda folder: _load(_written(folder / "in.pt", b"no model")),
        lambda folder: _load(_saved(folder, Small().state_dict())),
    ),
    "give an earlier checkpoint.": Situation(
        lambda folder: _load(_saved(folder, _spoiled())), lambda folder: _load(_saved(folder, Small().state_dict()))
    ),
    "Leave out --arch.": Situation(
        lambda folder: _load(_exported(folder, Small().eval())),
        lambda folder: _load(_exported(folder, Small().eval()), arch=None),
    ),
    "Export it again in float32:": Situation(
        lambda folder: _program(folder, Small().double(), torch.float64), lambda folder: _program(folder, Small())
    ),
    "Call model.eval() before torch.export.export.": Situation(
        lambda folder: _program(folder, Dropping()), lambda folder: _program(folder, Dropping().eval())
    ),
    "make forward return its tensors": Situation(
        lambda folder: _load(_saved(folder, Small().state_dict()), arch=f"{__file__}:Prints"),
        lambda folder: _load(_saved(folder, Small().state_dict())),
    ),
    "Say which it is, such as --input {}": Situation(
        lambda folder: _load(_saved(folder, Maps().state_dict()), arch=f"{__file__}:Maps", inputs=[]),
        lambda folder: _load(_saved(folder, Maps().state_dict()), arch=f"{__file__}:Maps", inputs=["1x3x32x32"]),
    ),
    "Say which:": Situation(
        lambda folder: _load(_saved(folder, _several())), lambda folder: _load(_saved(folder, _several()), key="one")
    ),
    # places that are written
    "give the name of a file to write.": Situation(_place(lambda folder: folder), _GOOD),
    "Give another name.": Situation(_place(lambda folder: folder / ("n" * 300)), _GOOD),
    "Give another place.": Situation(_place(lambda _: Path("/proc/out.onnx")), _GOOD),
    "Make it first.": Situation(
        _place(lambda folder: folder / "none" / "out.onnx"),
        _place(lambda folder: _folder(folder / "none") / "out.onnx"),
    ),
    "Give another output place.": Situation(
        lambda folder: _write_beside(folder / "none" / "out.onnx"), lambda folder: _write_beside(folder / "out.onnx")
    ),
    "Give the name of a file.": Situation(_place(lambda folder: _pipe(folder / "pipe")), _GOOD),
    # code of the user's
    'Put what should not run on import below if __name__ == "__main__".': Situation(
        lambda folder: _read(f"{_script(folder, '1 / 0')}:data"),
        lambda folder: _read(f"{_script(folder, _GUARDED)}:data"),
    ),
    "Name that script:": Situation(
        lambda folder: _load(_of_a_script(folder), arch=None, trust_pickle=True),
        lambda folder: _load(_of_a_script(folder), arch=None, trust_pickle=True, code=folder / "train.py"),
    ),
    "Give the script that does with --code.": Situation(
        lambda folder: _load(_of_a_script(folder), arch=None, trust_pickle=True, code=_script(folder, "pass")),
        lambda folder: _load(_of_a_script(folder), arch=None, trust_pickle=True, code=folder / "train.py"),
    ),
    "Load its weights and save again.": Situation(
        lambda folder: _load(_saved(folder, Small().to("meta")), arch=None, trust_pickle=True),
        lambda folder: _load(_saved(folder, Small()), arch=None, trust_pickle=True),
    ),
    # ranking and training
    "give batches of (inputs, labels){}.": Situation(
        _slim(criterion="taylor", data=torch.randn(40, 6)),
        _slim(criterion="taylor", data=(torch.randn(40, 6), torch.arange(40) % 3)),
    ),
    "add --alpha 1.": Situation(
        lambda _: _finetuned(augment="cutmix"), lambda _: _finetuned(augment="cutmix", alpha=1.0)
    ),
    # tracing
    "Leave it out of dynamic, or change that.": Situation(
        lambda _: capture(trained(Small()), (torch.randn(2, 6),), TracingOptions(dynamic=("1",))),
        lambda _: capture(trained(Small()), (torch.randn(2, 6),)),
    ),
    "Give at least one.": Situation(
        lambda _: capture(trained(Small()), ()), lambda _: capture(trained(Small()), (torch.randn(2, 6),))
    ),
}
"""By the advice that is given and followed in them."""
