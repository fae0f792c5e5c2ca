"""What the user's own code and files do wrong is said to be theirs, with the place, whatever they raise and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from slim_model.data.open_data import open_data
from slim_model.data.training_samples import open_samples
from slim_model.errors import InputError
from slim_model.loading.user_code import make_importable

EXAMPLE = (torch.zeros(2, 3),)
OWN = """
import torch
def needs(path): return torch.zeros(40, 3)
def raises(): raise KeyError("split")
def nothing(): pass
def number(): return 3
def exits(): yield 1 / 0
def ragged(texts): return [[1] * len(text) for text in texts]
def stops(texts): raise LookupError("no vocabulary")
def none(texts): pass
"""


class Fails(Dataset[Any]):
    """At the sample of this number."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        if i == self.at:
            raise OSError("the file of this sample is gone")
        return torch.ones(3)


class WithoutLength(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return torch.ones(3)


class Stream(IterableDataset[Any]):
    def __init__(self, ends: bool = True) -> None:
        self.ends = ends

    def __iter__(self) -> Iterator[Any]:
        yield from torch.ones(40, 3)
        if not self.ends:
            raise RuntimeError("the connection was lost")


def _batches() -> Iterator[Any]:
    yield torch.ones(8, 3)
    raise ValueError("the second batch is broken")


def _own(name: str) -> Callable[[Path], Any]:
    def spec(folder: Path) -> str:
        (folder / "own.py").write_text(OWN)
        return f"{folder}/own.py:{name}"

    return spec


def _table(tokenizer: str) -> Callable[[Path], Any]:
    def spec(folder: Path) -> str:
        (folder / "own.py").write_text(OWN)
        (folder / "t.csv").write_text("text,label\n" + "".join(f"{'a' * (i + 1)},{i % 2}\n" for i in range(20)))
        return f"csv:{folder}/t.csv,tokenizer={folder}/own.py:{tokenizer}"

    return spec


def _broken_module(folder: Path) -> str:
    (folder / "broken_module.py").write_text("undefined_name\n")
    make_importable(folder)
    return "broken_module:data"


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a callable that needs arguments": (_own("needs"), r"calling it without arguments failed with TypeError: .*path"),
    "a callable that raises": (_own("raises"), r"failed with KeyError: 'split' \(at .*own.py:4: .*\)\. Mend it there"),
    "a callable that gives nothing": (_own("nothing"), "gave nothing. Give tensors"),
    "a callable that gives a number": (_own("number"), "gave an object of type int. Give tensors"),
    "a generator that raises": (_own("exits"), "reading it failed with ZeroDivisionError"),
    "a module that raises": (_broken_module, "importing broken_module failed with NameError"),
    "a lambda that raises": (lambda _: lambda: {}["x"], "calling it without arguments failed with KeyError"),
    "a number": (lambda _: 3, "gave an object of type int"),
    "a data set that fails in the middle": (lambda _: Fails(17), "reading it failed with OSError: the file of this"),
    "a loader that fails in the middle": (lambda _: DataLoader(Fails(17), 5), "reading it failed with OSError"),
    "batches that fail in the middle": (lambda _: _batches(), "reading it failed with ValueError: the second batch"),
    "a data set without a length": (lambda _: WithoutLength(), "counting its samples failed with TypeError"),
    "a stream that breaks": (lambda _: Stream(ends=False), "reading it failed with RuntimeError: the connection"),
    "a tokenizer that raises": (_table("stops"), "turning 20 texts into a tensor .* failed with LookupError"),
    "a tokenizer of ragged rows": (_table("ragged"), "turning 20 texts into a tensor .* failed with ValueError"),
    "a tokenizer that gives nothing": (_table("none"), "turning 20 texts into a tensor .* failed with"),
    "a name that is too long": (lambda folder: f"npz:{folder}/{'n' * 300}.npz", "File name too long"),
}


@pytest.mark.parametrize("reader", ["calibration", "training"])
@pytest.mark.parametrize("name", FAULTS)
def test_it_is_named(name: str, reader: str, tmp_path: Path) -> None:
    make, says = FAULTS[name]
    source = make(tmp_path)

    def read() -> None:
        if reader == "calibration":
            list(open_data(source, EXAMPLE).batches())
        else:
            samples = open_samples(source, EXAMPLE)
            list(samples.batches([torch.arange(len(samples))]))

    with pytest.raises(InputError, match=says):
        read()


def test_a_stream_of_samples_is_read() -> None:
    data = open_data(Stream(), EXAMPLE)
    assert sum(batch.samples for batch in data.batches()) == 40
    assert len(open_samples(Stream(), EXAMPLE)) == 40


def test_a_working_folder_that_was_deleted_has_nothing_to_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match="No module named 'no_such_module'"):
        open_data("no_such_module:data", EXAMPLE)
