"""More situations in which an error gives advice: folders, ONNX files, formats, what cannot be ranked or trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import Tensor, nn

from advice_in_models import _folder as folder_of
from advice_situations import Situation, Small
from quantizing import onnx_nets
from slim_model import Recipe, slim
from slim_model.atomic_write import destination
from slim_model.commands.profile import ProfileJob, learn
from slim_model.commands.slim_folder import _check as check_folder_job
from slim_model.coupling.attention_heads import couple_attention
from slim_model.data.open_data import open_data
from slim_model.data.options import DataOptions
from slim_model.export.torch_files import _described
from slim_model.folders.plan import Plan, plan_folder
from slim_model.folders.reading.checkpoint import family_of, open_checkpoint_folder
from slim_model.folders.reading.shards import stored_tensors
from slim_model.folders.slim_folder import _check_level, check_recipe
from slim_model.folders.tokens import read_tokens
from slim_model.graph.options import TracingOptions
from slim_model.loading.file_bytes import read_beside
from slim_model.loading.libraries.builders import imported
from slim_model.loading.load import load
from slim_model.loading.source import Source, SourceOptions
from slim_model.proof.capture import capture
from slim_model.proof.check_trace import check_trace
from slim_model.quantizing import float_model
from slim_model.ranking.evidence.gather import gather
from slim_model.recipe_files.job import job_of
from small_nets import trained

_X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


# -- folders --------------------------------------------------------------------------------------------------------


def _llama(folder: Path) -> Path:
    """One layer of 40 MLP channels and two key-value groups; nothing here runs it."""
    place = folder / "llama"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8, '
        '"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, "vocab_size": 256}'
    )
    shapes = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8)}
    shapes |= {"self_attn.o_proj": (8, 8), "mlp.gate_proj": (40, 8), "mlp.up_proj": (40, 8), "mlp.down_proj": (8, 40)}
    held = {f"model.layers.0.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    save_file(held, place / "model.safetensors")
    return place


def _plan(ratio: float) -> Callable[[Path], Plan]:
    return lambda folder: plan_folder(open_checkpoint_folder(_llama(folder)), ratio)


def _folder_job(**options: Any) -> Callable[[Path], Any]:
    return lambda folder: check_folder_job(job_of({"ratio": 0.5} | options, _llama(folder), folder / "out"))


def _stored(name: str, held: dict[str, Tensor]) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        save_file(held, folder / name)
        return stored_tensors(folder)

    return read


def _tokens(letters: int, more: str = "") -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "text").write_text("a" * letters)
        options = DataOptions(f"text:{folder}/text,tokenizer=bytes{more}")
        return read_tokens(open_checkpoint_folder(folder_of("llama")(folder)), options, 32)

    return read


# -- ONNX -----------------------------------------------------------------------------------------------------------


def _onnx(folder: Path) -> Path:
    return onnx_nets.classifier(folder / "in.onnx")


def _with_node(op: str, domain: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = onnx.load(_onnx(folder))
        model.graph.node[1].op_type, model.graph.node[1].domain = op, domain
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        onnx.save(model, folder / "other.onnx")
        return folder / "other.onnx"

    return make


def _open_axes(folder: Path) -> Path:
    """Of two sizes, of which one is the half of the other: no size for all fits."""
    one, two = (helper.make_tensor_value_info(name, 1, ("n", name)) for name in ("a", "b"))
    nodes = [helper.make_node("Concat", ["a", "a"], ["c"], "both", axis=1), helper.make_node("Mul", ["c", "b"], ["y"])]
    out = helper.make_tensor_value_info("y", 1, ("n", "b"))
    graph = helper.make_graph(nodes, "g", [one, two], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "in.onnx")
    return folder / "in.onnx"


def _loaded(make: Callable[[Path], Path], *inputs: str) -> Callable[[Path], Any]:
    return lambda folder: load(make(folder), SourceOptions(inputs=inputs))


def _too_large(most: int) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        with mock.patch.object(float_model, "MOST_BYTES", most):
            return float_model._read(_onnx(folder))

    return read


# -- models ---------------------------------------------------------------------------------------------------------


def _in_a_deleted_folder(folder: Path) -> Path:
    (folder / "gone").mkdir()
    with contextlib.chdir(folder / "gone"):
        (folder / "gone").rmdir()
        return destination(Path("out.onnx"))


def _in_its_place(folder: Path) -> Path:
    with contextlib.chdir(folder):
        return destination(Path("out.onnx"))


class _Frames(Small):
    """Takes a batch of whole pairs alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.b(y.view(x.shape[0] // 2, 2, 8).cumsum(1).view(x.shape[0], 8))


def _frames(*dynamic: str) -> Callable[[Path], Any]:
    return lambda _: capture(trained(_Frames()), (_X[:4],), TracingOptions(dynamic=dynamic))


class _InPlace(Small):
    """Writes over what its gradient needs."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(torch.relu(self.a(x))).sigmoid()
        y.mul_(2.0)
        return self.b(y)


class _Fixed(nn.Module):
    """Has no parameters to train."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(8, 6))
        self.register_buffer("head", torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight.T) @ self.head.T


class _OfModel(Small):
    """Another model than the one that was traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


def _traced(model: nn.Module) -> Callable[[Path], Any]:
    def check(_: Path) -> Any:
        return check_trace(model, capture(trained(Small()), (_X[:4],)))

    return check


def _statistics(*data: Any) -> Callable[[Path], Any]:
    def read(_: Path) -> Any:
        coupling = couple_attention(capture(trained(Small()), (_X[:4],)))
        return gather(coupling, open_data(data if len(data) > 1 else data[0], coupling.graph.inputs), ("classes",))

    return read


class _Remembers(nn.Module):
    """Holds no layer that is one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LSTM(6, 8), nn.LSTM(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)[0])[0]


def _factored(**options: Any) -> Callable[[Path], Any]:
    return lambda _: slim(trained(_Remembers()), torch.ones(2, 4, 6), multiple_of=1, ratio=0.5, **options)


def _slimmed(model: nn.Module, **options: Any) -> Callable[[Path], Any]:
    return lambda _: slim(model.eval(), _X[:4], ratio=0.5, multiple_of=1, data=(_X, torch.arange(40) % 3), **options)


def _recipe(**options: Any) -> Callable[[Path], Any]:
    return lambda _: Recipe.of(**options)


def _timed(*source: Source) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        with mock.patch("slim_model.commands.profile.measure_layers"):
            return learn(ProfileJob(*source, dtype="float16", cache=folder), lambda _: None)

    return run


def _beside(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "weights.bin").write_bytes(b"numbers")
        return read_beside(folder / "in.onnx", name)

    return read


IN_REFUSALS: dict[str, Situation] = {
    # folders
    "Give a larger --ratio.": Situation(_plan(0.01), _plan(0.5)),
    "Give a smaller --ratio:": Situation(_plan(0.8), _plan(0.74)),
    "Give --recover affine, or none.": Situation(
        lambda folder: _check_level(_plan(0.5)(folder), "bias"),
        lambda folder: _check_level(_plan(0.5)(folder), "affine"),
    ),
    "Leave it out, or give OUT.onnx.": Situation(
        lambda _: check_recipe(Recipe.of(static_batch=True)), lambda _: check_recipe(Recipe.of(ratio=0.5))
    ),
    "Leave out --arch and --input.": Situation(_folder_job(arch="torchvision:resnet18"), _folder_job()),
    "Leave the others out.": Situation(_folder_job(html=Path("r.html")), _folder_job(report=Path("r.json"))),
    "Give the folder as save_pretrained() writes it.": Situation(
        stored_tensors, _stored("model.safetensors", {"x": torch.ones(2)})
    ),
    "Give the folder that they were made from.": Situation(
        _stored("model.safetensors", {"x": torch.ones(2, dtype=torch.int8)}),
        _stored("model.safetensors", {"x": torch.ones(2)}),
    ),
    "Give the folder that they were made from, and quantise the smaller model.": Situation(
        lambda folder: family_of(folder, {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}),
        lambda folder: family_of(folder, {"model_type": "llama"}),
    ),
    "Give a longer text, or text:FILE,length=N.": Situation(_tokens(40), _tokens(40, ",length=8")),
    # ONNX files
    "Export the model without them.": Situation(_loaded(_with_node("Swirl", "acme")), _loaded(_onnx)),
    "Give the fp32 file that it was made of;": Situation(_loaded(_with_node("ConvInteger")), _loaded(_onnx)),
    "Give each, such as {}.": Situation(_loaded(_open_axes), _loaded(_open_axes, "a=2x3", "b=2x6")),
    "Put it there, by its name.": Situation(_beside("../weights.bin"), _beside("weights.bin")),
    "Use the fp32 file, or prune more of it first.": Situation(_too_large(400), _too_large(10**9)),
    # formats and packages
    "Change to another.": Situation(_in_a_deleted_folder, _in_its_place),
    "Install it:": Situation(lambda _: imported("no_such_package"), lambda _: imported("json")),
    "Try .pt2.": Situation(lambda _: _described(np.ones(2)), lambda _: _described(torch.ones(2))),
    # tracing, ranking, factoring
    "Leave axis 0 out of dynamic.": Situation(_frames("0"), _frames()),
    "Give a .pt2 made by torch.export, or report the model.": Situation(
        _traced(trained(_OfModel())), _traced(trained(Small()))
    ),
    "Give batches of (inputs, labels).": Situation(_statistics(_X), _statistics(_X, torch.arange(40) % 3)),
    "leave out --no-distill, or these.": Situation(
        _recipe(alpha=0.3, distill=False), _recipe(alpha=0.3, finetune=1, data=_X)
    ),
    "Leave out --finetune.": Situation(_slimmed(_Fixed(), finetune=1), _slimmed(_Fixed())),
    "Use a criterion without gradients, or operators that do not write in place.": Situation(
        _slimmed(_InPlace(), criterion="taylor"), _slimmed(_InPlace(), criterion="variance")
    ),
    "give no IN with it.": Situation(_timed(Source(Path("in.pt"))), _timed()),
    "Leave out --low-rank.": Situation(_factored(low_rank=True), _factored()),
}
"""By the advice that is given and followed in them."""
