"""Every real model as int8, on random data: whether the file runs, what stays fp32, how fast it is.

python benchmarks/int8_models.py                  what results/int8_models.json does not hold yet
python benchmarks/int8_models.py --only resnet50  one model
python benchmarks/int8_models.py --table          only the .md, from the .json

Those of real_models.py, and some more: YuNet, a trained face detector, on photos without faces; trained recurrent nets
that packages ship (package_nets), left out where those are not installed; and an LSTM of random weights. Where weights
are random any agreement will do: what is asked is whether a file comes out, and its speed. int8 is also written where
it is slower.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import version_converter
from PIL import Image
from torch import Tensor, nn

import datasets
import real_models
from package_nets.table import NETS
from provenance import RESULTS, provenance, summary
from slim_model.data.datasets import Divided
from slim_model.data.open_data import open_data
from slim_model.errors import SlimError
from slim_model.export.to_onnx import to_onnx
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions
from slim_model.proof.capture import capture
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.quantize import quantize
from slim_model.quantizing.samples import collect
from slim_model.quantizing.search import Limits
from stored_rows import load_rows, save_rows

_SAMPLES = 40


@dataclass(frozen=True, slots=True)
class Prepared:
    """``file``: fp32. ``inputs``: what it takes, of one sample; its batch is fixed or not. ``samples``: None for random
    ones."""

    file: Path
    inputs: tuple[Tensor, ...]
    dynamic_batch: bool = True
    samples: tuple[Tensor, ...] | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(x.name for x in onnxruntime.InferenceSession(str(self.file)).get_inputs())


class Sequences(nn.Module):
    """An LSTM over (N, 50, 40), and scores of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 2, batch_first=True)
        self.scores = nn.Linear(256, 20)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.lstm(x)[0][:, -1])
        return scores


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Prepared:
    graph = capture(model, inputs)
    to_onnx(graph, folder / "fp32.onnx", opset=None, metadata={}, device="cpu")
    return Prepared(folder / "fp32.onnx", tuple(x[:1] for x in inputs), graph.dynamic_batch)


def _real_model(name: str) -> Callable[[Path], Prepared]:
    case = real_models.CASES[name]

    def make(folder: Path) -> Prepared:
        options = SourceOptions(arch=case.arch, inputs=(case.input,) if case.input else ())
        subject = load(case.file(folder), options)
        inputs = tuple(torch.cat([x] * 2)[:2] for x in subject.arguments.tensors)
        return _exported(subject.model, inputs, folder)

    return make


def _yunet(folder: Path) -> Prepared:
    """Published in opset 11; the converter is that of the ONNX project."""
    model = onnx.load(datasets.data_file("weights/yunet/yunet_n_320_320.onnx"))
    onnx.save(version_converter.convert_version(model, 13), folder / "fp32.onnx")
    photos = _photos()
    return Prepared(folder / "fp32.onnx", (photos[:1],), dynamic_batch=False, samples=(photos,))


def _photos() -> Tensor:
    """(40, blue green red, 320, 320), from 0 to 255."""
    files = sorted(datasets.data_file("photos/hymenoptera").rglob("*.jpg"))[:_SAMPLES]
    read = [np.asarray(Image.open(file).convert("RGB").resize((320, 320))) for file in files]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).flip(1).float()


def _lstm(folder: Path) -> Prepared:
    torch.manual_seed(0)
    return _exported(Sequences().eval(), (torch.randn(2, 50, 40),), folder)


def _packaged(name: str) -> Callable[[Path], Prepared]:
    net = NETS[name]

    def make(folder: Path) -> Prepared:
        drawn = net.draw(_SAMPLES, np.random.default_rng(1))
        return replace(_exported(net.build(), (drawn[:2],), folder), samples=(drawn,))

    return make


_PACKAGED = ("BeatNet", "resemblyzer")
MODELS: dict[str, Callable[[Path], Prepared]] = {name: _real_model(name) for name in real_models.CASES}
MODELS |= {"yunet": _yunet, "lstm": _lstm} | {name: _packaged(name) for name in _PACKAGED}
_TRAINED = ["yunet", *_PACKAGED, *(name for name, case in real_models.CASES.items() if case.weights != "random")]


def _random(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(_SAMPLES, *x.shape[1:], generator=draw)
        if x.is_floating_point()
        else torch.randint(100, (_SAMPLES, *x.shape[1:]), generator=draw)
        for x in inputs
    )


def measured(name: str, threads: int) -> dict[str, Any]:
    """One row: what became of the model ``name``, or the fault."""
    row: dict[str, Any] = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        try:
            prepared = MODELS[name](Path(folder))
            gate = {} if name in _TRAINED else {"min_agreement": 0.01}
            options = QuantizingOptions(int8=True, int8_anyway=True, **gate)
            data = open_data(
                Divided(prepared.samples or _random(prepared.inputs)),
                prepared.inputs,
                samples=_SAMPLES,
                fixed_batch=not prepared.dynamic_batch,
            )
            target = Path(folder) / "int8.onnx"
            samples = collect(data, prepared, prepared.input_names)
            found = quantize(prepared.file, target, samples, options, Limits(threads, prepared.inputs), progress=print)
            if found.written:
                onnx.checker.check_model(target, full_check=True)
                row["finite"] = _finite(target, prepared)
            row["int8"] = asdict(replace(found, tail=()))
            row["tail"] = len(found.tail)
        except (SlimError, FileNotFoundError, ModuleNotFoundError) as error:
            row["fault"] = f"{type(error).__name__}: {error}"
    return row | provenance()


def _finite(file: Path, prepared: Prepared) -> bool:
    feed = {name: x.numpy() for name, x in zip(prepared.input_names, prepared.inputs, strict=True)}
    outputs = onnxruntime.InferenceSession(str(file)).run(None, feed)
    return all(bool(np.isfinite(x).all()) for x in outputs)


_TITLE = """# Real models as int8

On 40 random samples (32 to calibrate, 8 held out; YuNet on photos, BeatNet and resemblyzer on drawn sounds), one
thread. Signal is that of the worst output on held-out samples, in dB. Speed is against the fp32 file, with its 95 %
interval. In fp32 stay the layers that cost most, the nodes behind the last layer, and kinds without int8 kernels. What
is not here was not run yet. Made by `benchmarks/int8_models.py`.

| model | form | signal | layers in fp32 | behind | without kernels | size | speed-up |
|---|---|---|---|---|---|---|---|
"""


def line(row: dict[str, Any]) -> str:
    if "fault" in row:
        return f"| {row['model']} | {row['fault']} | | | | | | |"
    int8 = row["int8"]
    if not int8["written"]:
        return f"| {row['model']} | {int8['why']} | | | | | | |"
    chosen = int8["trials"][int8["chosen"]]
    form = ", ".join(filter(None, [int8["form"], int8["calibration"], *int8["repairs"]]))
    others = ", ".join(f"{count} {op}" for op, count in int8["others"].items())
    speed = f"{chosen['speedup']:.2f} ({chosen['speedup_low']:.2f}-{chosen['speedup_high']:.2f})"
    kept = [str(len(int8["fp32_layers"])), str(row["tail"]), others]
    size = f"{int8['int8_bytes'] / int8['fp32_bytes']:.2f}"
    cells = [row["model"], form, f"{min(chosen['snr_db']):.1f}", *kept, size, speed]
    return f"| {' | '.join(cells)} |"


def write_rows(place: Path, rows: dict[str, dict[str, Any]]) -> None:
    ordered = [rows[name] for name in MODELS if name in rows]
    save_rows(place, ordered)
    foot = "".join(f"\n{text}\n" for text in sorted({summary(row) for row in ordered}))
    place.with_suffix(".md").write_text(_TITLE + "".join(line(row) + "\n" for row in ordered) + foot)


def read_rows(place: Path) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in load_rows(place)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8_models.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in [] if given.table else given.only or MODELS:
        if given.again or "int8" not in read_rows(given.out).get(name, {}):
            row = measured(name, given.threads)
            write_rows(given.out, read_rows(given.out) | {name: row})
            print(line(row), flush=True)
    write_rows(given.out, read_rows(given.out))


if __name__ == "__main__":
    main()
