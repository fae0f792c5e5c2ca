"""Recurrent networks as people build them: (model, example inputs), random weights, sizes of small real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, tuple[Any, ...]]


class Tagger(nn.Module):
    """Words -> a label for each (Lample 2016 without the CRF)."""

    def __init__(self, words: int = 5000, labels: int = 17) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 128)
        self.rnn = nn.LSTM(128, 192, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.head = nn.Linear(384, labels)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(words))[0])


class LanguageModel(nn.Module):
    """Words -> the next word at each place; the table is the head's weight (Press 2017)."""

    def __init__(self, words: int = 4000, width: int = 256) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.rnn = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, words)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(words))[0])


class SpeechNet(nn.Module):
    """Spectra -> letters: convolutions over time and frequency, then bidirectional GRUs (Amodei 2016)."""

    def __init__(self, bands: int = 40, letters: int = 29) -> None:
        super().__init__()
        self.front = nn.Sequential(
            *(nn.Conv2d(1, 32, (5, 11), (2, 2), (2, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20)),
            *(nn.Conv2d(32, 32, (5, 11), (2, 1), (2, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20)),
        )
        self.rnn = nn.GRU(32 * bands // 4, 256, num_layers=3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(512, letters)

    def forward(self, spectra: Tensor) -> Tensor:
        x = self.front(spectra).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.rnn(x)[0])


class KeywordNet(nn.Module):
    """Frames -> a keyword: two GRUs behind a strided convolution (Arik 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(40, 64, 5, stride=2, padding=2), nn.BatchNorm1d(64)
        self.rnn = nn.GRU(64, 128, num_layers=2, batch_first=True)
        self.fc, self.head = nn.Linear(128, 64), nn.Linear(64, 12)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(frames))).transpose(1, 2)
        return self.head(F.relu(self.fc(self.rnn(x)[1][-1])))


class TextReader(nn.Module):
    """A line of text as a picture -> letters (CRNN: Shi 2015)."""

    def __init__(self, letters: int = 37) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for given, out, pool in ((1, 32, (2, 2)), (32, 64, (2, 2)), (64, 128, (2, 1)), (128, 128, (2, 1))):
            convolution = nn.Conv2d(given, out, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(pool)]
        self.front = nn.Sequential(*blocks)
        self.first = nn.LSTM(256, 128, bidirectional=True, batch_first=True)
        self.between = nn.Linear(256, 128)
        self.second = nn.LSTM(128, 128, bidirectional=True, batch_first=True)
        self.head = nn.Linear(256, letters)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.front(pictures).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.second(self.between(self.first(x)[0]))[0])


class Translator(nn.Module):
    """Words of one language, words so far of the other -> the next one, with attention (Luong 2015)."""

    def __init__(self, words: int = 3000, width: int = 192) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, 128), nn.Embedding(words, 128)
        self.encoder = nn.GRU(128, width, num_layers=2, batch_first=True)
        self.decoder = nn.GRU(128, width, num_layers=2, batch_first=True)
        self.query, self.join = nn.Linear(width, width, bias=False), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, words)

    def forward(self, words: Tensor, so_far: Tensor) -> Tensor:
        keys, state = self.encoder(self.source(words))
        found, _ = self.decoder(self.target(so_far), state)
        weights = (self.query(found) @ keys.transpose(1, 2)).softmax(-1)
        return self.head(torch.tanh(self.join(torch.cat([weights @ keys, found], 2))))


class Forecaster(nn.Module):
    """A series -> its next steps: residual LSTMs with layer norms between."""

    def __init__(self, series: int = 9, ahead: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(series, 96)
        self.layers = nn.ModuleList(nn.LSTM(96, 96, batch_first=True) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(96) for _ in range(3))
        self.head = nn.Linear(96, series * ahead)

    def forward(self, steps: Tensor) -> Tensor:
        x = self.embed(steps)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))[0]
        return self.head(x[:, -1])


class Wrapped(nn.Module):
    """One recurrent layer of any kind between a linear one and a head."""

    def __init__(self, layer: nn.RNNBase, batch_first: bool = True) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(32, layer.input_size), layer
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.head = nn.Linear(width, 10)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        x = self.rnn(x)[0] if self.batch_first else self.rnn(x.transpose(0, 1))[0].transpose(0, 1)
        return self.head(x)


class Unrolled(nn.Module):
    """Cells in a loop of the forward's own."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0] if isinstance(state, tuple) else state)


def _words(*shape: int) -> Tensor:
    return torch.randint(0, 3000, shape, generator=torch.Generator().manual_seed(0))


def _steps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _wrapped(layer: Callable[..., nn.RNNBase], **options: Any) -> Callable[[], Built]:
    return lambda: (Wrapped(layer(48, 128, batch_first=True, **options)), (_steps(2, 20, 32),))


MODELS: dict[str, Callable[[], Built]] = {
    "lstm": _wrapped(nn.LSTM),
    "lstm_stacked": _wrapped(nn.LSTM, num_layers=3, dropout=0.2),
    "lstm_bidirectional": _wrapped(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm_projected": _wrapped(nn.LSTM, proj_size=64),
    "lstm_projected_bidirectional": _wrapped(nn.LSTM, num_layers=2, bidirectional=True, proj_size=32),
    "lstm_without_bias": _wrapped(nn.LSTM, bias=False),
    "lstm_steps_first": lambda: (Wrapped(nn.LSTM(48, 128), batch_first=False), (_steps(2, 20, 32),)),
    "gru": _wrapped(nn.GRU),
    "gru_bidirectional": _wrapped(nn.GRU, num_layers=2, bidirectional=True),
    "rnn_tanh": _wrapped(nn.RNN, num_layers=2),
    "rnn_relu": _wrapped(nn.RNN, nonlinearity="relu", bidirectional=True),
    "lstm_cell": lambda: (Unrolled(nn.LSTMCell(32, 96)), (_steps(2, 8, 32),)),
    "gru_cell": lambda: (Unrolled(nn.GRUCell(32, 96)), (_steps(2, 8, 32),)),
    "rnn_cell": lambda: (Unrolled(nn.RNNCell(32, 96)), (_steps(2, 8, 32),)),
    "tagger": lambda: (Tagger(), (_words(2, 24),)),
    "language_model": lambda: (LanguageModel(), (_words(2, 24),)),
    "speech": lambda: (SpeechNet(), (_steps(2, 1, 40, 100),)),
    "keyword": lambda: (KeywordNet(), (_steps(2, 40, 98),)),
    "text_reader": lambda: (TextReader(), (_steps(2, 1, 32, 100),)),
    "translator": lambda: (Translator(), (_words(2, 18), _words(2, 12))),
    "forecaster": lambda: (Forecaster(), (_steps(2, 30, 9),)),
}
