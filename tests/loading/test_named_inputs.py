"""Tensors by keyword, in dicts, in lists; values that are no tensors: typed, carried by an archive, given in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slim_model.api import in_python_words, slim
from slim_model.errors import InputError
from slim_model.export.torch_files import restore, save
from slim_model.graph.as_module import graph_module
from slim_model.loading.given.example_file import example_arguments, read_example
from slim_model.loading.given.place_inputs import make_arguments
from slim_model.loading.given.python_inputs import arguments_given
from slim_model.loading.input_spec import parse_input
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import SmallModule
from slim_model.recipe import Recipe


class Net(nn.Module):
    """Everything at once: a dict, a list, a keyword alone, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, batch: dict[str, Tensor], *, views: Any = (), scale: float = 1.0) -> dict[str, Tensor]:
        x = self.a(batch["image"]) + self.b(batch["text"])
        return {"out": self.out(torch.relu(sum((self.a(view) for view in views), x))) * scale}


class Rest(Net):
    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:  # type: ignore[override]
        return self.out(torch.relu(self.a(x) + self.b(rest[0])))


def x(size: int = 8) -> Tensor:
    return torch.randn(2, size, generator=torch.Generator().manual_seed(size))


GIVEN = {"batch": {"image": x(), "text": x(4)}, "views": [x()], "scale": 2.0}
TYPED = ("batch.image=2x8", "batch.text=2x4", "views.0=2x8", "scale=float=2.0")
NAMES = ("batch.image", "batch.text", "views.0")


def test_typed_inputs_are_placed_by_name() -> None:
    arguments = make_arguments(Net(), map(parse_input, TYPED), 0)
    (batch,) = arguments.args
    assert {name: tuple(t.shape) for name, t in batch.items()} == {"image": (2, 8), "text": (2, 4)}
    assert len(arguments.kwargs["views"]) == 1
    assert arguments.kwargs["scale"] == 2.0
    assert arguments.names(Net()) == NAMES


def test_values_are_those_that_were_typed() -> None:
    typed = ("2x2:int64=1,2,3,4", "3=0.5", "scalar:bool=true")
    first, second, third = (
        make_arguments(nn.Identity(), map(parse_input, typed[:1]), 0).tensors,
        *(make_arguments(nn.Identity(), [parse_input(text)], 0).tensors for text in typed[1:]),
    )
    assert first[0].tolist() == [[1, 2], [3, 4]]
    assert second[0].tolist() == [0.5] * 3
    assert third[0].item() is True


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("text=2x8",), r"forward takes \(batch, views=..., scale=...\), .* such as --input batch="),
        (("2x8", "2x8", "2x8", "2x8"), "too many positional"),
        (("batch=2x8", "batch.image=2x8"), "given as a whole, too"),
        (("batch=2x8", "batch=2x8"), "given twice"),
    ],
)
def test_typed_inputs_that_do_not_fit_are_refused(typed: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_arguments(Net(), map(parse_input, typed), 0)


def test_the_batch_stays_free_and_the_small_modules_are_called_alike(tmp_path: Path) -> None:
    net = Net().eval()
    found = compile_model(net, arguments_given(net, GIVEN), Recipe.of(ratio=0.5))
    assert found.dense.dynamic_batch
    assert found.dense.input_names == NAMES
    assert "no tensors, and so constants of the model: scale=2.0" in found.warnings
    graph = graph_module(found.small)
    three = {"batch": {"image": torch.randn(3, 8), "text": torch.randn(3, 4)}, "views": [torch.randn(3, 8)]}
    expected = graph(three["batch"], views=three["views"])["out"]
    torch.testing.assert_close(graph(**three, scale=2.0)["out"], expected)
    with pytest.raises(ValueError, match=r"scale is 2.0 in this graph"):
        graph(**three, scale=3.0)
    save(found.small, SmallModule(graph, False), tmp_path / "small.pt2", found.removal(Recipe.of()))
    again = torch.export.load(str(tmp_path / "small.pt2")).module()
    torch.testing.assert_close(again(three["batch"], views=three["views"], scale=2.0)["out"], expected)
    save(found.small, SmallModule(graph, False), tmp_path / "small.safetensors", found.removal(Recipe.of()))
    torch.testing.assert_close(restore(net, tmp_path / "small.safetensors")(**three)["out"], expected)
    save(found.small, SmallModule(graph, False), tmp_path / "small.pt", found.removal(Recipe.of()))
    loaded = torch.load(tmp_path / "small.pt", weights_only=False)
    torch.testing.assert_close(loaded(**three)["out"], expected)
    assert set(loaded.state_dict()) == set(net.state_dict())


def test_a_forward_of_any_number_keeps_its_batch_free() -> None:
    found = compile_model(Rest().eval(), (x(), x(4)), Recipe.of(ratio=0.5))
    assert found.dense.dynamic_batch
    assert found.dense.input_names == ("x", "rest.0")


def test_an_archive_carries_its_keywords_and_numbers(tmp_path: Path) -> None:
    program = torch.export.export(Net().eval(), (GIVEN["batch"],), {"views": [x()], "scale": 2.0})
    torch.export.save(program, tmp_path / "net.pt2")
    subject = load(tmp_path / "net.pt2")
    found = compile_model(subject.model, subject.arguments, Recipe.of(ratio=0.5), program=subject.program)
    assert found.small.input_names == NAMES
    assert found.small.outputs.names == ("out",)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, sr: int, scale: float = 1.0) -> tuple[Tensor, int]:
        y = torch.relu(self.a(x)) * scale
        if sr == 8000:
            y = y * 2
        return self.out(y), sr


def test_torchscript_takes_numbers(tmp_path: Path) -> None:
    net = Scripted().eval()
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    subject = load(tmp_path / "net.pt", SourceOptions(inputs=("2x8", "sr=int=8000")))
    found = compile_model(subject.model, subject.arguments, Recipe.of(ratio=0.5))
    assert set(found.dense.tensors) >= {"a.weight", "out.bias"}
    expected, number = net(*subject.arguments.args)
    torch.testing.assert_close(found.dense.run(found.dense.inputs)[0][:2], expected)
    assert int(found.dense.run(found.dense.inputs)[1]) == number


PYTHON: list[tuple[Any, str]] = [
    (np.zeros((2, 8)), r"example_inputs is a numpy.ndarray. Give a tensor: torch.as_tensor\(array\)"),
    ([np.zeros((2, 8))], r"input 0 is a numpy.ndarray. Give a tensor"),
    ((2, 8), r"example_inputs is a tuple of sizes. .*torch.randn\(2, 8\)"),
    ("2x8", "example_inputs is a str. Give a tensor, a tuple of the arguments of forward, or a dict"),
    (None, "example_inputs is a NoneType. Give a tensor"),
    ([], "no input is a tensor"),
    ((x(), x(), x()), r"forward takes \(batch, .* Give them by name, in a dict: slim\(model, \{'batch': tensor"),
    (x(), "the model cannot run on these inputs .batch: .2, 8. float32.: IndexError"),
]


@pytest.mark.parametrize(("given", "message"), PYTHON, ids=lambda value: type(value).__name__)
def test_python_is_answered_in_its_own_words(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        slim(Net(), given)
    assert "--" not in str(raised.value)
    assert ".pt2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("you asked for it (--static-batch)", "you asked for it (static_batch=True)"),
        ("when widths are rounded to 8; try --multiple-of 1.", "when widths are rounded to 8; try multiple_of=1."),
        ("leave the layer as it is: --keep 'a.b'.", "leave the layer as it is: keep='a.b'."),
        ("add --data SPEC, such as mnist:DIR", "add data=SPEC, such as mnist:DIR"),
        ("leave out --no-distill, or --hints.", "leave out distill=False, or hints."),
        ("Raise --samples.", "Raise samples."),
        ("--save small.pt keeps it", "--save small.pt keeps it"),
    ],
)
def test_options_are_named_as_a_call_has_them(text: str, words: str) -> None:
    assert in_python_words(text) == words


def test_messages_and_notes_of_a_call_are_in_its_words() -> None:
    with pytest.raises(InputError, match="keep='nothing' matches no layer"):
        slim(Scripted().eval(), (x(), 8000), keep=("nothing",))
    _, _, report = slim(Scripted().eval(), (x(), 8000), static_batch=True)
    assert any("static_batch=True" in note for note in report.warnings)


class Counts(nn.Module):
    def __init__(self, count: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.out, self.count = nn.Linear(8, 16), nn.Linear(16, 3), count

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.relu(self.a(x))), self.count(x)


def test_a_number_that_follows_from_values_is_refused() -> None:
    with pytest.raises(InputError, match=r"as its output 'output_1' follows from the values"):
        slim(Counts(lambda x: int((x > 0).sum())).eval(), x())
    slim(Counts(lambda x: x.shape[1]).eval(), x())


# -- a file of all inputs -------------------------------------------------------------------------------------------


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor, sr: int, views: Any = None) -> Tensor:
        return self.a(x) * lengths[:, None] / sr


ARRAYS = {"x": np.ones((2, 8), np.float32), "lengths": np.array([3, 4]), "sr": np.array(16000)}
SAVED: list[Any] = [
    (torch.ones(2, 8), torch.tensor([3, 4]), 16000),
    [torch.ones(2, 8), torch.tensor([3, 4]), 16000, None],
    {"x": torch.ones(2, 8), "lengths": torch.tensor([3, 4]), "sr": 16000},
]


def example_files(folder: Path) -> list[Path]:
    """The same inputs in every form."""
    paths = [folder / "named.npz", *(folder / f"{number}.pt" for number in range(len(SAVED)))]
    np.savez(paths[0], **ARRAYS)
    for path, held in zip(paths[1:], SAVED, strict=True):
        torch.save(held, path)
    return paths


def test_a_file_has_all_inputs(tmp_path: Path) -> None:
    for path in example_files(tmp_path):
        arguments = example_arguments(Speech(), read_example(path))
        assert arguments.names(Speech()) == ("x", "lengths"), path
        assert arguments.args[2] == 16000
        assert arguments.tensors[1].tolist() == [3, 4]


def test_arrays_may_have_keys_or_no_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "keys.npz", **{"batch.image": np.ones((2, 8)), "batch.text": np.ones((2, 4))})
    assert example_arguments(Net(), read_example(tmp_path / "keys.npz")).names(Net()) == NAMES[:2]
    np.savez(tmp_path / "places.npz", np.ones((2, 8)), np.ones(2), np.array(1))
    assert example_arguments(Speech(), read_example(tmp_path / "places.npz")).names(Speech())[:2] == ("x", "lengths")


def test_a_dict_that_forward_takes_as_a_whole(tmp_path: Path) -> None:
    torch.save(GIVEN["batch"], tmp_path / "batch.pt")
    assert example_arguments(Net(), read_example(tmp_path / "batch.pt")).names(Net()) == NAMES[:2]


def _raw(path: Path) -> None:
    path.write_bytes(b"no archive")


FILES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("cut.npz", _raw, "cannot be read as .npz"),
    ("cut.pt", _raw, "cannot be read"),
    ("text.npz", lambda path: np.savez(path, x=np.array(["a"])), "array 'x' is of type <U1"),
    ("net.pt", lambda path: torch.save({"x": nn.Linear(2, 2)}, path), "which is no input"),
    ("none.npz", lambda path: None, "there is no such file"),
]


@pytest.mark.parametrize(("name", "write", "message"), FILES, ids=[name for name, *_ in FILES])
def test_a_file_without_inputs_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path], Any], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=f"--example .*{name}: .*{message}"):
        read_example(tmp_path / name)


def test_the_command_takes_the_file_or_the_shapes(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Scripted().eval()), tmp_path / "net.pt")
    torch.save((x(), 8000), tmp_path / "example.pt")
    subject = load(tmp_path / "net.pt", SourceOptions(example=tmp_path / "example.pt"))
    assert torch.equal(subject.inputs[0], x())
    assert subject.arguments.args[1] == 8000
    with pytest.raises(InputError, match="leave out --input"):
        load(tmp_path / "net.pt", SourceOptions(example=tmp_path / "example.pt", inputs=("2x8",)))
