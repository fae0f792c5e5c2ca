"""Recurrent layers and weights that are used several times are recovered like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_model import Recipe, Slices
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from small_nets import error

UNITS = 8


def repeats_go(slices: Slices) -> Tensor:
    """Every fourth unit repeats the one three before it."""
    return torch.tensor([float(unit % 4 != 3) for unit in range(slices.width)])


def steps_of(samples: int) -> Tensor:
    return torch.randn(samples, 6, 5, generator=torch.Generator().manual_seed(0))


def recovered(model: nn.Module, level: str, x: Tensor, **options: Any) -> Compiled:
    options = {"ratio": 0.25, "criterion": repeats_go, "multiple_of": 1} | options
    torch.manual_seed(0)
    return compile_model(model, (x[:2],), Recipe.of(recover=level, data=[*x.split(30)], samples=len(x), **options))


def repeating(layer: nn.Module, units: int = UNITS) -> nn.Module:
    """In each gate of each layer and direction the rows of a unit that repeats are those of the other one."""
    with torch.no_grad():
        for name, tensor in layer.named_parameters():
            tensor *= 2
            blocks = tensor.view(-1, UNITS if "weight_hr" in name else units, *tensor.shape[1:])
            blocks[:, 3::4] = blocks[:, ::4]
    return layer


class Sequence(nn.Module):
    """A recurrent layer, and a reader of its output."""

    def __init__(self, rnn: nn.RNNBase, width: int = UNITS) -> None:
        super().__init__()
        self.rnn, self.read = repeating(rnn, rnn.hidden_size), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.rnn(x)[0])


class Windows(nn.Module):
    """A cell that is called step after step, on what a layer makes of each."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.make, self.cell = repeating(nn.Linear(5, UNITS)), repeating(cell)
        self.read = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(3):
            state = self.cell(self.make(x[:, step]), state)
        return self.read(state[0] if isinstance(state, tuple) else state)


class Loop(nn.Module):
    """One layer, used again and again on what it gave; the channels that it makes repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.again, self.read = nn.Linear(5, UNITS), repeating(nn.Linear(UNITS, UNITS)), nn.Linear(UNITS, 3)
        repeating(self.make)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.make(x.mean(1)))
        for _ in range(3):
            x = torch.tanh(self.again(x))
        return self.read(x)


class Pyramid(nn.Module):
    """One head for maps of two sizes, as detectors have."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.head = repeating(nn.Conv1d(5, UNITS, 3, padding=1)), nn.Conv1d(UNITS, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x.transpose(1, 2))
        return torch.cat([self.head(x), self.head(F.max_pool1d(x, 2))], 2)


NETS_THAT_REPEAT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Sequence(nn.LSTM(5, UNITS, batch_first=True)),
    "lstm, three layers": lambda: Sequence(nn.LSTM(5, UNITS, 3, batch_first=True)),
    "lstm, both ways": lambda: Sequence(nn.LSTM(5, UNITS, 2, bidirectional=True, batch_first=True), 2 * UNITS),
    "lstm, projected": lambda: Sequence(nn.LSTM(5, 2 * UNITS, 2, proj_size=UNITS, batch_first=True)),
    "lstm without bias": lambda: Sequence(nn.LSTM(5, UNITS, bias=False, batch_first=True)),
    "gru": lambda: Sequence(nn.GRU(5, UNITS, 2, batch_first=True)),
    "gru, both ways": lambda: Sequence(nn.GRU(5, UNITS, 2, bidirectional=True, batch_first=True), 2 * UNITS),
    "rnn": lambda: Sequence(nn.RNN(5, UNITS, 2, batch_first=True)),
    "rnn with relu": lambda: Sequence(nn.RNN(5, UNITS, nonlinearity="relu", batch_first=True)),
    "lstm cell": lambda: Windows(nn.LSTMCell(UNITS, UNITS)),
    "gru cell": lambda: Windows(nn.GRUCell(UNITS, UNITS)),
    "a layer in a loop": Loop,
    "a head for two sizes": Pyramid,
}


@pytest.mark.parametrize("level", ["affine", "full"])
@pytest.mark.parametrize("net", NETS_THAT_REPEAT)
def test_a_unit_that_repeats_another_is_not_missed(net: str, level: str) -> None:
    torch.manual_seed(1)
    model, x = NETS_THAT_REPEAT[net]().eval(), steps_of(150)
    result = recovered(model, level, x)
    (expected,) = result.dense.run((x,))
    assert error(expected, recovered(model, "none", x).small.run((x,))[0]) > 0.02
    assert error(expected, result.small.run((x,))[0]) < 2e-3


def test_fitted_states_come_closer_than_folded_ones() -> None:
    """Nothing repeats; each level is judged by the error of whole runs."""
    torch.manual_seed(1)
    rnn = nn.LSTM(5, 16, 2, batch_first=True)
    with torch.no_grad():
        for tensor in rnn.parameters():
            tensor *= 3
    model = Sequence(nn.LSTM(5, UNITS), 16)
    model.rnn = rnn
    result = recovered(model.eval(), "full", steps_of(300), criterion="l1", ratio=0.4)
    found = {step.name: step.did for step in result.steps}
    errors = [found["affine"]["error_before"], found["affine"]["error_after"], found["full"]["error_after"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.7 * errors[0]
    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l1", "read.weight"} <= found["full"]["layers"].keys()
    assert all("taken_back" not in step or not step["taken_back"] for step in found.values())


def test_a_block_trains_weights_that_only_it_uses() -> None:
    torch.manual_seed(1)
    model = Windows(nn.LSTMCell(UNITS, UNITS))
    result = recovered(model.eval(), "blocks", steps_of(400), criterion="l1", ratio=0.4)
    found = {step.name: step.did for step in result.steps}
    assert found["blocks"]["error_after"] < found["full"]["error_after"]
