"""More situations in which an error gives advice: recipes, files of commands, int8, inputs."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from advice_situations import ARCH, Situation, Small
from command_runs import on_a_full_disk
from quantizing import onnx_nets
from slim_model import Recipe, slim
from slim_model.cli.sweep import sweep_command
from slim_model.commands.compare import read_reports
from slim_model.commands.int8 import check_int8
from slim_model.commands.outputs import publish
from slim_model.commands.quantize import QuantizeJob, quantize_file
from slim_model.commands.sweep import no_outputs
from slim_model.cost.latency_store import check_cache
from slim_model.cost.latency_table import Setting
from slim_model.data.open_data import open_data
from slim_model.data.options import DataOptions
from slim_model.data.plain_text import TextSpec
from slim_model.errors import InputError
from slim_model.export.options import OutputOptions
from slim_model.folders.write import check_target
from slim_model.graph.options import TracingOptions
from slim_model.loading.input_spec import parse_input
from slim_model.loading.load import load
from slim_model.loading.model_file import open_artifact
from slim_model.loading.source import SourceOptions
from slim_model.measuring.runtimes import runtime_named
from slim_model.proof.capture import capture
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.samples import collect
from slim_model.recipe_files.job import job_of
from slim_model.recipe_files.read import read_job
from small_nets import trained

_X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
_CLASSES = torch.arange(40) % 3


def _slim(model: Any = None, x: Any = None, **options: Any) -> Callable[[Path], Any]:
    return lambda _: slim(trained(model() if model else Small()), _X[:4] if x is None else x, multiple_of=1, **options)


# -- files of commands ----------------------------------------------------------------------------------------------


def _recipe(text: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "recipe.toml").write_text(text)
        return read_job(folder / "recipe.toml")

    return read


_PLACES = '[source]\npath = "in.pt"\n[outputs]\nonnx = "out.onnx"\n'


def _reports(text: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "report.json").write_text(text)
        return read_reports([folder / "report.json"])

    return read


def _whole_report(folder: Path) -> Any:
    """One that ``--report`` writes."""
    return _reports(slim(trained(Small()), _X[:4], ratio=0.5).report.as_json())(folder)


_SETTING = Setting("machine", "onnxruntime", "1", 1, "float32", 1)


def _job(**options: Any) -> Callable[[Path], Any]:
    return lambda folder: check_int8(job_of({"data": "npz:d.npz"} | options, folder / "in.pt", folder / "out.onnx"))


def _in_no_home(_: Path) -> Any:
    with mock.patch("slim_model.cost.latency_store.cache_folder", return_value=None):
        return check_cache(_SETTING, None)


def _file(folder: Path) -> Path:
    (folder / "file").write_text("no folder")
    return folder / "file"


def _plain_text(options: str) -> Callable[[Path], Any]:
    return lambda folder: TextSpec.of(f"text:{_file(folder)}{options}")


def _on_a_full_disk(folder: Path) -> None:
    on_a_full_disk(publish)(folder / "report.json", "x" * 4000)


def _swept(**given: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "recipe.toml").write_text(_PLACES)
        (folder / "file").write_text("no folder")
        try:
            sweep_command(folder / "recipe.toml", options=given, into=folder / given.pop("into", "new"))
        except InputError as error:
            if "there is no such file" not in str(error):  # of IN, which is none: all else was right
                raise

    return read


# -- models that are read -------------------------------------------------------------------------------------------


def _weights(folder: Path) -> Path:
    torch.save(Small().state_dict(), folder / "in.pt")
    return folder / "in.pt"


def _loaded(make: Callable[[Path], Path], **options: Any) -> Callable[[Path], Any]:
    return lambda folder: load(make(folder), SourceOptions(**{"arch": ARCH, "inputs": ["2x6"]} | options))


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        archive.writestr("read.me", "no model")
    return folder / "in.zip"


def _old_program(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "in.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    return folder / "in.pt2"


def _program(folder: Path) -> Path:
    torch.export.save(torch.export.export(Small().eval(), (torch.randn(2, 6),)), folder / "in.pt2")
    return folder / "in.pt2"


class _Constant(nn.Module):
    def forward(self) -> Tensor:
        return torch.ones(2, 3)


def _program_without_inputs(folder: Path) -> Path:
    torch.export.save(torch.export.export(_Constant(), ()), folder / "in.pt2")
    return folder / "in.pt2"


def _example(folder: Path) -> Path:
    np.savez(folder / "example.npz", x=_X[:2].numpy())
    return folder / "example.npz"


def _onnx(folder: Path, **options: Any) -> Path:
    return onnx_nets.classifier(folder / "in.onnx", **options)


def _enlarging(folder: Path) -> Path:
    """A picture of the size that is tried where nobody says one comes out as 13 GB."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Upsample(scale_factor=150), nn.Conv2d(3, 3, 1))
    torch.save(model, folder / "in.pt")
    return folder / "in.pt"


def _open_height(folder: Path) -> Path:
    model = onnx.load(_onnx(folder))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, folder / "open.onnx")
    return folder / "open.onnx"


def _artifact(make: Callable[[Path], Path], batch: int = 2, **options: Any) -> Callable[[Path], Any]:
    return lambda folder: open_artifact(make(folder), SourceOptions(**options)).shapes(batch)


def _with_example(folder: Path) -> Any:
    return load(_weights(folder), SourceOptions(arch=ARCH, inputs=("2x6",), example=_example(folder)))


# -- int8 -----------------------------------------------------------------------------------------------------------


def _quantized(make: Callable[[Path], Path], samples: int = 64, **changes: Any) -> Callable[[Path], Any]:
    def quantize(folder: Path) -> Any:
        np.savez(folder / "d.npz", x=np.random.default_rng(0).normal(size=(samples, *onnx_nets.SIZE)).astype("f4"))
        job = QuantizeJob(make(folder), folder / "out.onnx", DataOptions(f"npz:{folder}/d.npz"), QuantizingOptions())
        return quantize_file(replace(job, bench=False, **changes), lambda _: None)

    return quantize


def _int8(folder: Path) -> Path:
    _quantized(_onnx)(folder)
    return folder / "out.onnx"


def _quantize_again(folder: Path) -> Any:
    int8 = _int8(folder).rename(folder / "int8.onnx")
    return _quantized(lambda _: int8)(folder)


def _collected(samples: int) -> Callable[[Path], Any]:
    """From batches, of which no part is held out before."""

    def collected(_: Path) -> Any:
        graph = capture(trained(Small()), (_X[:4],), TracingOptions())
        return collect(open_data([_X[:samples]], graph.inputs), graph, ["x"])

    return collected


IN_COMMANDS: dict[str, Situation] = {
    # recipes and reports
    "Add it, or give --source IN.": Situation(_recipe('[outputs]\nonnx = "out.onnx"\n'), _recipe(_PLACES)),
    "Add it, or give --onnx OUT.onnx.": Situation(_recipe('[source]\npath = "in.pt"\n'), _recipe(_PLACES)),
    "Put it in quotes.": Situation(
        _recipe(f"{_PLACES}[ranking]\ncriterion = 1\n"), _recipe(f'{_PLACES}[ranking]\ncriterion = "l1"\n')
    ),
    "write [{}], and its options below.": Situation(
        _recipe(f"budget = 0.5\n{_PLACES}"), _recipe(f"{_PLACES}[budget]\nratio = 0.5\n")
    ),
    "Give reports that --report wrote.": Situation(_reports("no JSON"), _whole_report),
    "Give a file that --report wrote.": Situation(_reports("{}"), _whole_report),
    "Leave it out, and give it to slim-model run with the report of the point you choose.": Situation(
        lambda _: no_outputs(OutputOptions(save=Path("small.pt2"))), lambda _: no_outputs(OutputOptions())
    ),
    "Give another with --into.": Situation(_swept(into="file"), _swept(into="folder")),
    "add --low-rank.": Situation(
        lambda _: Recipe.of(rank_forms=("svd",)), lambda _: Recipe.of(rank_forms=("svd",), low_rank=True)
    ),
    # folders and plain text
    "write {}.": Situation(lambda folder: TextSpec.of(f"file:{_file(folder)}"), _plain_text("")),
    "Write {}.": Situation(_plain_text(",length=x"), _plain_text(",length=8")),
    "Give another name, or remove it.": Situation(
        lambda folder: check_target(_file(folder).parent), lambda folder: check_target(folder / "new")
    ),
    # places
    "Say where:": Situation(_in_no_home, lambda folder: check_cache(_SETTING, folder)),
    "Give another folder:": Situation(
        lambda folder: check_cache(_SETTING, _file(folder)), lambda folder: check_cache(_SETTING, folder)
    ),
    "Free space or give another place.": Situation(
        _on_a_full_disk, lambda folder: publish(folder / "report.json", "x" * 4000)
    ),
    # int8
    "Leave it out.": Situation(_job(keep_fp32=Path("fp32.onnx")), _job()),
    "leave out --device.": Situation(_job(int8=True, device="cuda"), _job(int8=True)),
    "add --data SPEC.": Situation(lambda _: Recipe.of(int8=True), lambda _: Recipe.of(int8=True, data="npz:d.npz")),
    "Give the fp32 file.": Situation(_quantize_again, _quantized(_onnx)),
    "Export it with opset {} or later, or convert it:": Situation(
        _quantized(lambda folder: _onnx(folder, opset=11)), _quantized(lambda folder: _onnx(folder, opset=13))
    ),
    "Give more data.": Situation(_collected(3), _collected(40)),
    "Use the fp32 file.": Situation(
        _quantized(lambda folder: onnx_nets.without_layers(folder / "in.onnx")), _quantized(_onnx)
    ),
    # inputs and files
    "choose from {}": Situation(lambda _: parse_input("2x6:flot"), lambda _: parse_input("2x6:float32")),
    "give one for all, or one each": Situation(lambda _: parse_input("3=1,2"), lambda _: parse_input("3=1,2,3")),
    "choose from {}.": Situation(lambda _: runtime_named("onnx"), lambda _: runtime_named("onnxruntime")),
    "leave out --input.": Situation(
        _with_example, lambda folder: load(_weights(folder), SourceOptions(arch=ARCH, example=_example(folder)))
    ),
    "Give the model file.": Situation(_loaded(_zip), _loaded(_weights)),
    "Export it again with the torch installed here.": Situation(
        _loaded(_old_program, arch=None), _loaded(_program, arch=None)
    ),
    "Export it as torch.export.export(model, (tensor, ...), {'name':": Situation(
        _loaded(_program_without_inputs, arch=None, inputs=[]), _loaded(_program, arch=None, inputs=[])
    ),
    "Give --input, of the shape that it is used with or a smaller one.": Situation(
        _loaded(_enlarging, arch=None, inputs=[]), _loaded(_enlarging, arch=None, inputs=["1x3x8x8"])
    ),
    "Leave --batch out.": Situation(
        _artifact(lambda folder: _onnx(folder, batch=4)), _artifact(lambda folder: _onnx(folder, batch=4), batch=4)
    ),
    "Give --input with all sizes, once per input, such as --input 1x3x224x224 or --input 1x16:int64.": Situation(
        _artifact(_open_height), _artifact(_open_height, inputs=("2x3x8x8",))
    ),
}
"""By the advice that is given and followed in them."""
