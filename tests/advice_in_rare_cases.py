"""More situations in which an error gives advice: what few models do, and what few machines lack."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from advice_situations import ARCH, Situation, Small, _finetuned, _of_a_script
from slim_model import slim
from slim_model.budget.options import BudgetOptions
from slim_model.cli.parameters import _values
from slim_model.data.options import DataOptions
from slim_model.folders.plan import plan_folder
from slim_model.folders.reading.checkpoint import family_of, open_checkpoint_folder
from slim_model.folders.running import load_folder, what_is_read
from slim_model.folders.tokens import read_tokens
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions
from slim_model.options import options_of
from slim_model.proof.capture import capture
from small_nets import trained

_X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def _slim(model: type[nn.Module], **options: Any) -> Callable[[Path], Any]:
    return lambda _: slim(trained(model()), _X[:4], ratio=0.5, multiple_of=1, **options)


def _typed(text: str) -> Callable[[Path], Any]:
    (row,) = (row for row in options_of(BudgetOptions) if row[0].name == "ratio")
    return lambda _: _values(*row, [text])


# -- models ---------------------------------------------------------------------------------------------------------


class _Counts(Small):
    """Runs as often as its values say."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        while bool(y.sum() < 10.0):
            y = y + 1.0
        return self.b(y)


def _scripted(model: nn.Module) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        torch.jit.script(model.eval()).save(str(folder / "in.pt"))
        subject = load(folder / "in.pt", SourceOptions(inputs=["2x6"]))
        return capture(subject.model, subject.inputs)

    return read


def _as_pytorch(folder: Path) -> Any:
    torch.export.save(torch.export.export(Small().eval(), (_X[:2],)), folder / "in.pt2")
    load(folder / "in.pt2", SourceOptions())
    return capture(trained(_Counts()), (_X[:4],))


class _FromTable(Small):
    """Adds what a network of constants computes, as the position biases of Swin v2."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.c, self.d = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, None] + self.d(torch.relu(self.c(self.table)))


def _by_weights_or_left(folder: Path) -> None:
    _slim(_FromTable)(folder)
    _slim(_FromTable, criterion="variance", data=_X, keep="c*")(folder)


class _Whole(Small):
    """Returns one row for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0, keepdim=True)


class _Summed(Small):
    """Sums over the samples of a batch what a layer reads."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.b(y) + torch.einsum("bi,oi->o", y, self.b.weight)


def _factored_wrongly(_: Path) -> Any:
    with mock.patch("slim_model.factoring.prove_same._largest", return_value=1.0):
        return _slim(Small, low_rank=True)(_)


# -- code and folders -----------------------------------------------------------------------------------------------


def _of_a_package(folder: Path) -> Any:
    """A module whose class is of a file in another folder, which is read there or elsewhere."""
    place = folder / "project"
    place.mkdir(exist_ok=True)
    (place / "their_net.py").write_text("from torch import nn\nclass Net(nn.Sequential): pass\n")
    with mock.patch.object(sys, "path", [str(place), *sys.path]), _forgotten():
        made = __import__("their_net").Net(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        (folder / "in.pt").write_bytes(pickle.dumps(made))
    return place


@contextlib.contextmanager
def _forgotten() -> Any:
    try:
        yield
    finally:
        sys.modules.pop("their_net", None)


def _read_in(inside: bool) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        place = _of_a_package(folder)
        with (
            contextlib.chdir(place if inside else folder),
            mock.patch.object(sys, "path", list(sys.path)),
            _forgotten(),
        ):
            return load(folder / "in.pt", SourceOptions(inputs=["2x6"], trust_pickle=True))

    return read


def _with_code_or_without(folder: Path) -> None:
    load(_of_a_script(folder), SourceOptions(inputs=["2x6"], trust_pickle=True, code=folder / "train.py"))
    torch.save(Small().state_dict(), folder / "in.pt")
    load(folder / "in.pt", SourceOptions(arch=ARCH, inputs=["2x6"]))


def _folder(folder: Path) -> Path:
    pytest.importorskip("transformers")
    from tiny_folders import tiny_folder  # it needs transformers

    return folder / "llama" if (folder / "llama").exists() else tiny_folder("llama", folder, layers=1)


def _tokenizer(folder: Path) -> Any:
    """Of two words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.WordLevel({"a": 3, "b": 4, "?": 5}, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, unk_token="?").save_pretrained(_folder(folder))


def _text(folder: Path, more: str = "") -> Any:
    (folder / "text").write_text("a b " * 200)
    options = DataOptions(f"text:{folder}/text,length=8{more}")
    return read_tokens(open_checkpoint_folder(_folder(folder)), options, 32)


def _with_its_tokenizer(folder: Path) -> None:
    _text(folder, ",tokenizer=bytes")
    _tokenizer(folder)
    _text(folder)


def _layer(folder: Path, *, found: bool) -> Any:
    from transformers import __version__

    plan = plan_folder(open_checkpoint_folder(_folder(folder)), 0.5)
    assert __version__.startswith("5.")
    model = load_folder(plan.checkpoint.path, torch.float32).model if found else torch.nn.Module()
    return [what_is_read(model, site, lambda pairs, alone: None) for site in plan.sites]


_WHERE_CODE_IS = (
    "Start slim-model in the folder where the model's code can be imported, or install the package it is from."
)
IN_RARE_CASES: dict[str, Situation] = {
    "Give several as 0.3,0.5.": Situation(_typed("0.3;0.5"), _typed("0.3,0.5")),
    "Give the PyTorch model it was made from, or a .pt2 written by torch.export.": Situation(
        _scripted(_Counts()), _as_pytorch
    ),
    "Use a criterion of weights, or leave them:": Situation(
        _slim(_FromTable, criterion="variance", data=_X), _by_weights_or_left
    ),
    "Use --allocate uniform.": Situation(
        _slim(_Whole, criterion="l1", data=_X, allocate="sensitivity"),
        _slim(_Whole, criterion="l1", data=_X, allocate="uniform"),
    ),
    "Use another one.": Situation(
        _slim(_Summed, criterion="thinet", data=_X), _slim(_Summed, criterion="variance", data=_X)
    ),
    "leave out --low-rank.": Situation(_factored_wrongly, _slim(Small)),
    "Leave out --hints.": Situation(
        lambda _: _finetuned(hints=1.0, static_batch=True), lambda _: _finetuned(static_batch=True)
    ),
    "add --trust-pickle where you made the file yourself, or leave it out.": Situation(
        lambda folder: SourceOptions(code=folder / "train.py"), _with_code_or_without
    ),
    _WHERE_CODE_IS: Situation(_read_in(False), _read_in(True)),
    "Give the model as a .pt2 file instead:": Situation(
        lambda folder: family_of(folder, {"model_type": "segformer"}), _as_pytorch
    ),
    "Put its files into the folder;": Situation(_text, _with_its_tokenizer),
    "Take one it was tested with:": Situation(
        lambda folder: _layer(folder, found=False), lambda folder: _layer(folder, found=True)
    ),
}
"""By the advice that is given and followed in them."""
