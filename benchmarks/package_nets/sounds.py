"""Sounds that are drawn: tones of one pitch, speech-like syllables, drums; and spectra of them."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
_FORMANTS = ((300.0, 850.0), (850.0, 2300.0), (2300.0, 3200.0))
"""Ranges of the three resonances of a vowel, in Hz."""


def tones(count: int, length: int, rate: int, rng: np.random.Generator) -> Array:
    """``(count, length)``: harmonics of one pitch each, 50 to 1,000 Hz, which fall off at random, in noise."""
    time = np.arange(length) / rate
    pitch = np.exp(rng.uniform(np.log(50), np.log(1000), (count, 1)))
    falling, sound = rng.uniform(0.3, 2.0, (count, 1)), np.zeros((count, length), np.float32)
    for harmonic in range(1, 17):
        loud = harmonic**-falling * (harmonic * pitch < rate / 2)
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        sound += (loud * np.sin(2 * np.pi * harmonic * pitch * time + phase)).astype(np.float32)
    level = sound.std(1, keepdims=True) * 10 ** (-rng.uniform(0, 40, (count, 1)) / 20)
    return (sound + level * rng.standard_normal(sound.shape)).astype(np.float32)


def spoken(count: int, length: int, rate: int, rng: np.random.Generator) -> Array:
    """``(count, length)`` from -1 to 1: vowels, hisses and pauses of 60 to 300 ms, of one voice each, in noise."""
    return np.stack([_utterance(length, rate, rng) for _ in range(count)])


def _utterance(length: int, rate: int, rng: np.random.Generator) -> Array:
    voice, size = np.exp(rng.uniform(np.log(80), np.log(260))), rng.uniform(0.85, 1.2)
    harmonics = np.arange(1, int(4000 / voice) + 1)
    pitch, hiss = np.empty(length), np.zeros(length)
    loud = np.zeros((len(harmonics), length), np.float32)
    start = 0
    while start < length:
        end = min(length, start + int(rate * rng.uniform(0.06, 0.3)))
        pitch[start:end] = voice * np.exp(rng.normal(0, 0.12) + np.linspace(0, rng.normal(0, 0.1), end - start))
        kind = rng.choice(3, p=(0.6, 0.15, 0.25))
        if kind == 0:
            peaks = [size * rng.uniform(*span) for span in _FORMANTS]
            heard = sum(1 / (1 + ((harmonics * voice - peak) / (60 + 0.06 * peak)) ** 2) for peak in peaks)
            loud[:, start:end] = (heard / harmonics**0.5)[:, None]
        elif kind == 1:
            hiss[start:end] = rng.uniform(0.05, 0.4)
        start = end
    smooth = np.hanning(rate // 50) / np.hanning(rate // 50).sum()
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = sum(_convolved(row, smooth) * np.sin(n * phase) for n, row in zip(harmonics, loud, strict=True))
    noise = rng.standard_normal(length)
    sound = sound + _convolved(hiss, smooth) * np.diff(noise, append=0.0)
    sound = sound + np.abs(sound).max() * 10 ** (-rng.uniform(10, 50) / 20) * noise
    return (rng.uniform(0.1, 0.8) * sound / max(float(np.abs(sound).max()), 1e-6)).astype(np.float32)


def drums(count: int, length: int, rate: int, rng: np.random.Generator) -> Array:
    """``(count, length)``: a bar of four over and over at 60 to 200 beats a minute, its first beat the deepest."""
    sounds = np.zeros((count, length), np.float32)
    for sound in sounds:
        beat, at, number = 60 * rate / rng.uniform(60, 200), rng.uniform(0, rate / 2), int(rng.integers(4))
        time, chord = np.arange(length) / rate, rng.uniform(80, 800, 3)
        sound += 0.1 * rng.uniform() * np.sin(2 * np.pi * chord[:, None] * time).sum(0).astype(np.float32)
        while at < length:
            hit = np.arange(min(int(0.15 * rate), length - int(at))) / rate
            deep = np.sin(2 * np.pi * (60 if number % 4 == 0 else 180) * hit) * np.exp(-hit * 25)
            click = rng.standard_normal(len(hit)) * np.exp(-hit * 80)
            sound[int(at) : int(at) + len(hit)] += (deep + rng.uniform(0.2, 0.6) * click).astype(np.float32)
            at, number = at + beat * rng.normal(1, 0.01), number + 1
        sound += 10 ** (-rng.uniform(20, 50) / 20) * rng.standard_normal(length).astype(np.float32)
    return sounds / np.abs(sounds).max(1, keepdims=True)


def _convolved(row: Array, window: Array) -> Array:
    return np.convolve(row, window, mode="same")


# -- spectra -----------------------------------------------------------------------------------------------------------


def spectra(sound: Array, window: int, hop: int, power: float) -> Array:
    """``(count, frames, window // 2 + 1)`` of windows under a Hann bell."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, window, axis=1)[:, ::hop]
    return np.stack([np.abs(np.fft.rfft(one * np.hanning(window))) ** power for one in frames]).astype(np.float32)


def mel_filters(bands: int, window: int, rate: int) -> Array:
    """``(window // 2 + 1, bands)``: triangles of equal area, evenly spaced on the mel scale (Slaney 1998)."""
    highest = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, highest, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    return _triangles(edges, window, rate) * (2 / (edges[2:] - edges[:-2]))


def musical_filters(each_octave: int, low: float, high: float, window: int, rate: int) -> Array:
    """``(window // 2 + 1, bands)``: triangles over the bins nearest to the notes of a scale tuned to 440 Hz, each bin
    once; the sum of each is 1 (Böck, Schedl 2011)."""
    notes = np.arange(-200, 200)
    pitches = 440 * 2 ** (notes / each_octave)
    pitches = pitches[(pitches >= low) & (pitches <= high)]
    width = rate / window
    bins = np.unique(np.clip(np.round(pitches / width), 0, window // 2))
    filters = _triangles(bins * width, window, rate)
    return filters / np.maximum(filters.sum(0), 1e-9)


def _triangles(edges: Array, window: int, rate: int) -> Array:
    at = np.arange(window // 2 + 1)[:, None] * rate / window
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    return np.clip(np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None)


def constant_q(sound: Array, rate: int, lowest: float, bins: int, each_octave: int, gamma: float) -> Array:
    """``(count, bins)`` in dB at the middle of each sound: windows whose bandwidth is a share of the frequency, and
    ``gamma`` Hz (Schörkhuber, Klapuri et al. 2014)."""
    length, share = sound.shape[1], 2 ** (1 / each_octave) - 1
    time, levels = (np.arange(length) - length / 2) / rate, []
    for number in range(bins):
        pitch = lowest * 2 ** (number / each_octave)
        wide = rate / (pitch * share + gamma) / rate
        bell = np.where(np.abs(time) < wide / 2, 0.5 + 0.5 * np.cos(2 * np.pi * time / wide), 0)
        kernel = bell / max(bell.sum(), 1e-9) * np.exp(-2j * np.pi * pitch * time) if pitch < rate / 2 else 0 * time
        levels.append(np.abs(sound @ kernel))
    return (20 * np.log10(np.maximum(np.stack(levels, 1), 1.2e-7))).astype(np.float32)
