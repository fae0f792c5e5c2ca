"""Inputs for a model: from a spec, or guessed."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_files import INPUT, NET_SOURCE, SHAPES, refusal
from slim_model.errors import InputError
from slim_model.loading.example_inputs import guess_inputs
from slim_model.loading.input_spec import ConstantSpec, InputSpec, TensorSpec, parse_input
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions


def test_parse_input() -> None:
    """One row for each form that docs/cli.md names."""
    typed = {
        "1x3x224x224": ("", TensorSpec((1, 3, 224, 224), torch.float32)),
        " 1X16:INT64 ": ("", TensorSpec((1, 16), torch.int64)),
        "4:bool": ("", TensorSpec((4,), torch.bool)),
        "image=1x3x8x8": ("image", TensorSpec((1, 3, 8, 8), torch.float32)),
        "batch.views.0=1x3": ("batch.views.0", TensorSpec((1, 3), torch.float32)),
        "lengths=1:int64=64": ("lengths", TensorSpec((1,), torch.int64, (64,))),
        "3:int64=1,2,3": ("", TensorSpec((3,), torch.int64, (1, 2, 3))),
        "mask=1x2:bool=true": ("mask", TensorSpec((1, 2), torch.bool, (True,))),
        "t=scalar=0.5": ("t", TensorSpec((), torch.float32, (0.5,))),
        "sr=int=16000": ("sr", ConstantSpec(16000)),
        "int=3": ("", ConstantSpec(3)),
        "scale=float=0.5": ("scale", ConstantSpec(0.5)),
        "training=bool=false": ("training", ConstantSpec(False)),
        "mode=str=a=b": ("mode", ConstantSpec("a=b")),
        "state=none": ("state", ConstantSpec(None)),
    }
    for text, (name, given) in typed.items():
        assert parse_input(text) == InputSpec(name, given), text


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "3,224",
        "1x",
        "x3",
        "1x-3",
        "1x3:float",
        "0x3",
        "1x99999999x9999",
        "1x3.5",
        "ax3",
        "x=",
        "x=1=y",
        "1x3=1,2",
        "1:uint8=300",
        "1:int64=0.5",
        "1:bool=7",
        "n=int=x",
        "flag=bool=maybe",
    ],
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
        TensorSpec((2, 50), getattr(torch, name))
        for name in ("float32", "float16", "float64", "int64", "int32", "uint8", "bool")
    ]
    first, again, other = (make_inputs(Net(), specs, seed) for seed in (1, 1, 2))
    assert [x.dtype for x in first] == [spec.dtype for spec in specs]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_tokens_are_numbers_that_every_embedding_has() -> None:
    net = nn.ModuleList([nn.Embedding(50, 4), nn.Embedding(7, 4)])
    from slim_model.loading.example_inputs import make_inputs

    [tokens] = make_inputs(net, [TensorSpec((1, 500), torch.int64)], 0)
    assert set(tokens.unique().tolist()) == set(range(7))


def test_an_input_the_model_cannot_run_on(tmp_path: Path, file: Path) -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    torch.save(net, file)
    message = refusal(file, inputs=["1x3"])
    assert "1x3" in message
    assert ":int64" in message
    assert tuple(load(file, SourceOptions(inputs=["1x3:int64"])).inputs[0].shape) == (1, 3)


def test_a_forward_that_raises_names_the_users_line(tmp_path: Path, file: Path, clean_imports: None) -> None:
    path = tmp_path / "net.py"
    path.write_text(textwrap.dedent(NET_SOURCE).replace("return self", "raise ValueError('out of luck')  #"))
    torch.save({name: torch.zeros(shape) for name, shape in SHAPES.items()}, file)
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
