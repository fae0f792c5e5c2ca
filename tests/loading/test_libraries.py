"""A row of the table of libraries is all that a library needs: here one that is made up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from command_runs import QUICK
from model_files import refusal
from slim_model.cli import run
from slim_model.errors import InputError
from slim_model.loading.libraries import table
from slim_model.loading.libraries.builders import imported
from slim_model.loading.libraries.table import InUse, Library
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions

LAYERS = """
import torch
from torch import nn
from torch import nn
from nowhere_else import Other

class Halves(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.c, self.i, self.type = width, width, "fakelib.layers.Halves"
        self.cv1, self.cv2 = nn.Conv2d(6, 2 * width, 1), nn.Conv2d(2 * width, 6, 1)

    def forward(self, x):
        a, b = self.cv1(x).split((self.c, self.c), 1)
        return self.cv2(torch.cat([a.relu(), b.sigmoid()], 1))

class Net(nn.Module):
    exports = raw = False

    def __init__(self, num_classes=3):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 6, 3), Halves(), nn.Conv2d(6, num_classes, 1)

    def forward(self, x):
        y = self.head(self.body(self.stem(x).relu()))
        if self.raw:
            return y
        return y.sigmoid() if self.exports else (y.sigmoid(), {"raw": y})
"""
OTHER = """
from torch import nn

class Other(nn.Module):
    pass
"""
SETTINGS = """
class Options:
    def __init__(self, **values):
        self.__dict__.update(values)
"""


def in_use(model: Any, raw: bool = False) -> InUse:
    model.exports, model.raw = True, raw
    return InUse(inputs=("images",), outputs=("output0",), sides=(16,), notes=("output0 is a chance",))


def file_of(small: Any, beside: Any) -> dict[str, Any]:
    del small.exports, small.raw
    return {"net": small, "beside": beside}


@pytest.fixture
def fakelib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, imported."""
    for name, text in (("layers", LAYERS), ("settings", SETTINGS), ("__init__", "")):
        place = tmp_path / "packages" / "fakelib" / f"{name}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (tmp_path / "packages" / "nowhere_else.py").write_text(OTHER)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    row = Library(
        "fakelib",
        layers=("fakelib.layers",),
        settings=("fakelib.settings.Options",),
        training=("criterion",),
        texts=("type",),
        builder=lambda name: getattr(sys.modules["fakelib.layers"], name),
        in_use=in_use,
        file=file_of,
    )
    monkeypatch.setattr(table, "LIBRARIES", (*table.LIBRARIES, row))
    import fakelib.layers  # type: ignore[import-not-found]
    import fakelib.settings  # type: ignore[import-not-found]

    yield fakelib
    for name in [n for n in sys.modules if n.partition(".")[0] in ("fakelib", "nowhere_else")]:
        del sys.modules[name]


def saved(model: Any, path: Path, **beside: Any) -> Path:
    torch.save({"model": None, "ema": model, "epoch": 3, **beside}, path)
    return path


def test_a_model_of_a_row_loads_as_its_library_uses_it(fakelib: Any, file: Path) -> None:
    """Options become plain attributes, and what only trains is left out; averages are said to be what was taken."""
    model = fakelib.layers.Net()
    model.args = fakelib.settings.Options(size=16)
    model.criterion = fakelib.settings.Options(model=model.stem)
    subject = load(saved(model, file))
    assert type(subject.model) is fakelib.layers.Net
    assert vars(subject.model.args) == {"size": 16}  # type: ignore[arg-type]
    assert subject.model.criterion is None
    assert subject.model.body.type == "fakelib.layers.Halves"  # type: ignore[union-attr]
    assert subject.inputs[0].shape == (1, 3, 16, 16)
    assert any("'ema', the averages over the steps of training, was taken" in note for note in subject.notes)
    assert "output0 is a chance" in subject.notes


def test_what_a_row_does_not_list_is_refused(fakelib: Any, file: Path) -> None:
    """A class that a listed module only imports; options that are no options; a text where a method is called."""
    model = fakelib.layers.Net()
    model.other = fakelib.layers.Other()
    assert "nowhere_else.Other" in refusal(saved(model, file))
    model = fakelib.layers.Net()
    model.args = fakelib.settings.Options(size=Path())
    assert "may not load" in refusal(saved(model, file))
    model = fakelib.layers.Net()
    model.forward = "text"
    assert "with its own 'forward'" in refusal(saved(model, file))


def test_arch_builds_by_a_row(fakelib: Any, file: Path) -> None:
    torch.save(fakelib.layers.Net(num_classes=5).state_dict(), file)
    subject = load(file, SourceOptions(arch="fakelib:Net"))
    assert type(subject.model) is fakelib.layers.Net
    assert subject.model.head.out_channels == 5  # type: ignore[union-attr]


def test_files_bear_the_librarys_names_and_form(fakelib: Any, file: Path, tmp_path: Path) -> None:
    """OUT.onnx has the names of its export; ``--save`` writes its checkpoint, of its classes with smaller layers, which
    loads here again."""
    out, small = tmp_path / "out.onnx", tmp_path / "small.pt"
    torch.manual_seed(0)
    assert run([str(saved(fakelib.layers.Net(), file, date="today")), str(out), "--save", str(small), *QUICK]) == 0
    graph = onnx.load(out).graph
    assert [x.name for x in (*graph.input, *graph.output)] == ["images", "output0"]
    content = torch.load(small, weights_only=False)
    assert content["beside"] == {"model": None, "epoch": 3, "date": "today"}
    body = content["net"].body
    assert (body.c, body.i, body.cv1.out_channels) == (4, 8, 8)
    assert load(small).model.body.c == 4  # type: ignore[union-attr]


def test_rows_say_what_they_know() -> None:
    """No library twice; what a row calls is there."""
    names = [library.package for library in table.LIBRARIES]
    assert len(names) == len(set(names))
    for library in table.LIBRARIES:
        for late in (library.builder, library.implied, library.in_use, library.file):
            assert late is None or callable(late.load())  # type: ignore[attr-defined]
        assert library.in_use is None or library.layers, "a form is found by the class of a model"


def test_raw_heads(fakelib: Any, file: Path) -> None:
    """What is asked for goes to the row; a model of no row has none."""
    torch.manual_seed(0)
    path = saved(fakelib.layers.Net(), file)
    raw, exported = (load(path, SourceOptions(raw_heads=wanted)) for wanted in (True, False))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(raw.model(x).sigmoid(), exported.model(x))
    torch.save(nn.Sequential(nn.Linear(3, 3)), file)
    with pytest.raises(InputError, match=r"whose heads give nothing else than its outputs\. Leave out --raw-heads"):
        load(file, SourceOptions(raw_heads=True, inputs=("1x3",)))


def test_a_library_that_is_not_here_is_named() -> None:
    with pytest.raises(InputError, match=r"needs not_here\. Install it: pip install not-here"):
        imported("not_here")


def test_a_layer_may_remember_a_shape(file: Path) -> None:
    """A ``torch.Size`` is plain and a tuple; it was taken for a tuple that holds itself."""
    layer = nn.LayerNorm(torch.zeros(2, 3).shape)
    layer.shape = torch.Size([2, 3])  # type: ignore[assignment]
    torch.save(nn.Sequential(nn.Linear(3, 3), layer), file)
    subject = load(file, SourceOptions(inputs=("1x2x3",)))
    assert subject.model[1].shape == (2, 3)  # type: ignore[index]
