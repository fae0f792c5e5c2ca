"""Nothing that a model returns is lost: every output is in the file, in its order, by a name that tells, or is refused.

Forms are flattened by hand here, each on one visible line; one model that returns them all goes the whole way.
"""

from __future__ import annotations

import dataclasses
import types
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, distributions, nn

from micronets import NETS
from micronets.compiled import BATCH, graph_of, model_of
from slim_model.api import slim
from slim_model.calling.outputs import flatten_outputs
from slim_model.errors import InputError
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.as_module import graph_module
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe


class Boxes(NamedTuple):
    boxes: Any
    scores: Any


@dataclasses.dataclass
class Answer:
    logits: Any
    loss: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    hidden: Any


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: what is None is not among its items."""


class Cache:
    """As transformers keeps the keys and values of attention."""

    def __init__(self, y: Tensor) -> None:
        self.layers = [types.SimpleNamespace(keys=y, values=-y)]


Cache.__module__ = "transformers.cache_utils"
Flat = dict[str, Callable[[Tensor], Tensor]]
FORMS: dict[str, tuple[Callable[[Tensor], Any], Flat]] = {
    "tensor": (lambda y: y, {"output": lambda y: y}),
    "tuple": (lambda y: (y, y * 2), {"output_0": lambda y: y, "output_1": lambda y: y * 2}),
    "list_of_dicts": (lambda y: [{"a": y}, {"a": -y}], {"output_0.a": lambda y: y, "output_1.a": lambda y: -y}),
    "nested": (lambda y: {"p": {"z": y, "a": -y}, "v": [y * 3]},
               {"p.z": lambda y: y, "p.a": lambda y: -y, "v.0": lambda y: y * 3}),
    "numbers_as_keys": (lambda y: {0: y, 7: y + 1}, {"output_0": lambda y: y, "output_7": lambda y: y + 1}),
    "namedtuple": (lambda y: Boxes(y, y + 1), {"boxes": lambda y: y, "scores": lambda y: y + 1}),
    "values_and_indices": (lambda y: y.max(1), {"values": lambda y: y.amax(1), "indices": lambda y: y.argmax(1)}),
    "data_class": (Answer, {"logits": lambda y: y}),
    "frozen": (lambda y: Frozen((y, -y)), {"hidden.0": lambda y: y, "hidden.1": lambda y: -y}),
    "model_output": (lambda y: ModelOutput(logits=y), {"logits": lambda y: y}),
    "cache": (lambda y: {"kept": Cache(y)}, {"kept.0.keys": lambda y: y, "kept.0.values": lambda y: -y}),
    "user_dict": (lambda y: UserDict(a=y), {"a": lambda y: y}),
    "namespace": (lambda y: types.SimpleNamespace(a=y), {"a": lambda y: y}),
    "deque": (lambda y: deque([y, -y]), {"output_0": lambda y: y, "output_1": lambda y: -y}),
    "numbers": (lambda y: (y, 5, 0.5, True, None, y.shape[1]),
                {"output_0": lambda y: y, "output_1": lambda y: torch.tensor(5),
                 "output_2": lambda y: torch.tensor(0.5), "output_3": lambda y: torch.tensor(True),
                 "output_5": lambda y: torch.tensor(3)}),
    "batch_size": (lambda y: (y, y.shape[0]),
                   {"output_0": lambda y: y, "output_1": lambda y: torch.tensor(y.shape[0])}),
    "twice": (lambda y: (y, y), {"output_0": lambda y: y, "output_1": lambda y: y}),
    "normal": (lambda y: distributions.Normal(y, y.exp()), {"loc": lambda y: y, "scale": lambda y: y.exp()}),
    "independent": (lambda y: distributions.Independent(distributions.Normal(y, y.exp()), 1),
                    {"loc": lambda y: y, "scale": lambda y: y.exp()}),
    "categorical": (lambda y: distributions.Categorical(logits=y), {"logits": lambda y: y.log_softmax(1)}),
    "probabilities": (lambda y: distributions.Categorical(probs=y.softmax(1)), {"probs": lambda y: y.softmax(1)}),
    "beta": (lambda y: distributions.Beta(y.exp(), y.exp() + 1),
             {"concentration1": lambda y: y.exp(), "concentration0": lambda y: y.exp() + 1}),
    "squashed": (lambda y: distributions.TransformedDistribution(
                     distributions.Normal(y, y.exp()),
                     [distributions.TanhTransform(), distributions.AffineTransform(2.0, y.abs() + 1)]),
                 {"base_dist.loc": lambda y: y, "base_dist.scale": lambda y: y.exp(),
                  "transforms.0.loc": lambda y: torch.tensor(2.0), "transforms.0.scale": lambda y: y.abs() + 1}),
}  # fmt: skip


class Net(nn.Module):
    """Two layers, then ``form``."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.form = nn.Linear(4, 16), nn.Linear(16, 3), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.b(torch.relu(self.a(x))))


def all_forms(y: Tensor) -> dict[str, Any]:
    return {name: form(y) for name, (form, _) in FORMS.items()}


def given(batch: int) -> Tensor:
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(batch))


def same(expected: list[Tensor], got: list[Any]) -> None:
    for a, b in zip(expected, map(torch.as_tensor, got), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_flattened_by_names_that_tell(name: str) -> None:
    form, flat = FORMS[name]
    y = torch.randn(2, 3)
    tensors, found = flatten_outputs(form(y))
    assert list(found.names) == list(flat)
    same([value(y) for value in flat.values()], list(tensors))


def test_all_forms_reach_the_file_by_name_and_in_order(tmp_path: Path) -> None:
    net = Net(all_forms).eval()
    found = compile_model(net, (given(2),), Recipe.of(ratio=0.5))
    to_onnx(found.small, tmp_path / "small.onnx", opset=None, metadata={})
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    names = [f"{name}.{inner}".replace(".output_", ".").replace(".output", "") for name, (_, flat) in FORMS.items()
             for inner in flat]  # fmt: skip
    assert [output.name for output in session.get_outputs()] == names
    x = given(5)
    small = graph_module(found.small)
    y = small(x)["tensor"]
    expected = [value(y) for _, flat in FORMS.values() for value in flat.values()]
    same(expected, list(flatten_outputs(small(x))[0]))
    same(expected, session.run(None, {"x": x.numpy()}))
    assert any("is a Normal" in note for note in found.warnings)
    assert any("numbers among the outputs" in note for note in found.warnings)


def test_the_own_module_returns_what_the_model_did() -> None:
    small, _, _ = slim(Net(FORMS["namedtuple"][0]).eval(), given(2), ratio=0.5)
    assert isinstance(small(given(3)), Boxes)
    assert small.a.weight.shape[0] == 8


def test_an_output_may_bear_the_name_of_an_input_and_be_one(tmp_path: Path) -> None:
    class Both(Net):
        def forward(self, x: Tensor) -> Any:
            return {"x": super().forward(x), "linear": x, "a": self.b.bias}

    net = Both(FORMS["tensor"][0]).eval()
    found = compile_model(net, (given(2),), Recipe.of(ratio=0.5))
    to_onnx(found.small, tmp_path / "small.onnx", opset=None, metadata={})
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert [output.name for output in session.get_outputs()] == ["x_out", "linear", "a"]
    got = session.run(None, {"x": given(3).numpy()})
    np.testing.assert_array_equal(got[1], given(3).numpy())


class Plain:
    """Of no kind that is known."""


@pytest.mark.parametrize(
    ("form", "where"),
    [
        (lambda y: Plain(), "returns a .*Plain as its output,"),
        (lambda y: {"a": y, "meta": {"kind": "car"}}, r"returns a str \('car'\) as its output 'meta.kind'"),
        (lambda y: (y, {y}), "returns a set as its output 'output_1'"),
        (lambda y: (y, y.detach().numpy()), "returns a numpy.ndarray as its output 'output_1'"),
        (lambda y: (y, torch.float32), "returns a torch.dtype as its output 'output_1'"),
        (lambda y: (y, 1j), "returns a complex as its output 'output_1'"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(form: Callable[[Tensor], Any], where: str) -> None:
    with pytest.raises(InputError, match=where):
        flatten_outputs(form(torch.randn(2, 3)))


def test_a_refusal_comes_from_the_whole_way(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Plain as its output 'extra', .* a module around the model"):
        slim(Net(lambda y: {"y": y, "extra": Plain()}).eval(), given(2))


@pytest.mark.parametrize("name", NETS)
def test_a_graph_has_every_output_of_the_net(name: str) -> None:
    graph, inputs = graph_of(name), NETS[name].inputs(BATCH)
    with torch.no_grad():
        tensors, form = flatten_outputs(model_of(name)(*inputs))
    assert graph.outputs.names == form.names
    assert len(graph.run(graph.inputs)) == len(tensors) == len(set(form.names))
