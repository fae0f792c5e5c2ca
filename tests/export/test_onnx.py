"""The ONNX file: computes what the graph does at every batch size, is checked, and appears whole or not at all."""

from __future__ import annotations

import functools
import math
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript import rewriter
from torch import Tensor, nn

from slim_model.atomic_write import beside
from slim_model.errors import ExportError, InputError, ProofError
from slim_model.export.check_onnx import check_onnx, run_onnx
from slim_model.export.onnx_rewrites import tidy
from slim_model.export.to_onnx import to_onnx
from slim_model.export.to_program import to_program
from slim_model.graph.as_module import graph_module
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from small_nets import HardCoded, NotInOnnx, Residual, error, images, trained


class TwoInputs(nn.Module):
    """Tokens (N, 7) int64 and numbers (N, 4) -> two outputs, one of them a dict entry."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.numbers, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, tokens: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.embedding(tokens).mean(1) + self.numbers(numbers))
        return {"logits": self.head(x), "size": x.square().sum(1)}


class InputInParts(nn.Module):
    """``tensor_split`` of what has no channels to prune stays in the graph, and ONNX has no such operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, _ = x.tensor_split(2, 1)
        return self.head(self.conv(one).mean((2, 3)))


class BatchInParts(nn.Module):
    """Two passes as one batch: how long the parts are follows from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.conv(torch.cat([x, x.flip(3)])).chunk(2)
        return self.head((one * two).mean((2, 3)))


class Means(nn.Module):
    """Over the map and over less."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line, self.head = nn.Conv2d(3, 8, 3), nn.Conv1d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * x.mean((-1, 2), keepdim=True) + x.mean(3, keepdim=True) + x.mean((1, 2), keepdim=True)
        line = self.line(x.flatten(2)).mean(-1, keepdim=True)
        return self.head(line.flatten(1) + x.mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation behind a depthwise convolution, behind one of two groups, and of a mean of something
    else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16, bias=False)
        self.norm, self.grouped = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=2)
        self.gates = nn.ModuleList(nn.Sequential(nn.Conv2d(16, 4, 1), nn.SiLU(), nn.Conv2d(4, 16, 1)) for _ in "123")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = before = self.first(x)
        x = torch.nn.functional.silu(self.norm(self.depthwise(x)))
        x = x * self.gates[0](x.mean((2, 3), keepdim=True)).sigmoid()
        x = torch.relu(self.grouped(x))
        x = torch.nn.functional.hardsigmoid(self.gates[1](torch.nn.functional.adaptive_avg_pool2d(x, 1))) * x
        x = self.gates[2](before.mean((2, 3), keepdim=True)).sigmoid() * x
        return self.head(x.mean((2, 3)))


class Views(nn.Module):
    """The batch is written out, as in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x.view(x.shape[0], 2, 4, -1).softmax(-1).amax(-1).view(x.shape[0], 8))


def two_inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 30, (batch, 7), generator=generator), torch.randn(batch, 4, generator=generator)


@functools.cache
def small(net: type[nn.Module], static_batch: bool = False) -> Graph:
    inputs = two_inputs() if net is TwoInputs else (images(),)
    recipe = Recipe.of(ratio=0.5, multiple_of=1, static_batch=static_batch)
    return compile_model(trained(net()), inputs, recipe).small


def written(graph: Graph, path: Path, **options: Any) -> onnx.ModelProto:
    to_onnx(graph, path, **{"opset": None, "metadata": {}} | options)
    return onnx.load(path)


def axes(model: onnx.ModelProto) -> dict[str, list[str | int]]:
    values = [*model.graph.input, *model.graph.output]
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize("net", [Residual, HardCoded, TwoInputs, InputInParts, BatchInParts, Means, Gated, Views])
def test_every_batch_size(net: type[nn.Module], tmp_path: Path) -> None:
    graph = small(net)
    model = written(graph, tmp_path / "small.onnx")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    for batch in (1, 4, 7):
        inputs = two_inputs(batch) if net is TwoInputs else (images(batch),)
        expected, got = graph.run(inputs), run_onnx(session, inputs)
        assert len(expected) == len(got)
        for a, b in zip(expected, got, strict=True):
            assert error(a, torch.from_numpy(b)) <= 1e-4
    assert all(shape[0] == "batch" for shape in axes(model).values())


def test_a_static_batch_is_in_the_file(tmp_path: Path) -> None:
    assert list(axes(written(small(Residual, static_batch=True), tmp_path / "small.onnx")).values()) == [
        [2, 3, 16, 16],
        [2, 5],
    ]


class Counted(nn.Module):
    """Asks for the batch as a number, which fixes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).reshape(len(x), 8, -1).mean(2))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_the_model_fixes_is_fixed_in_the_file(batch: int, tmp_path: Path) -> None:
    graph = compile_model(trained(Counted()), (images(batch),), Recipe.of(ratio=0.5, multiple_of=1)).small
    assert list(axes(written(graph, tmp_path / "small.onnx")).values()) == [[batch, 3, 16, 16], [batch, 5]]
    with pytest.raises(Exception, match=f"Got: 5 Expected: {batch}"):
        run_onnx(onnxruntime.InferenceSession(tmp_path / "small.onnx"), (images(5),))


class Doubled(nn.Module):
    """(N, 3, H, W) -> (N, 5, 2 H, W - 2)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=(1, 0)), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.interpolate(self.conv(x), scale_factor=(2.0, 1.0)))


def test_free_axes_have_names_in_the_file(tmp_path: Path) -> None:
    recipe = Recipe.of(ratio=0.5, multiple_of=1, dynamic="2,3")
    graph = compile_model(trained(Doubled()), (images(),), recipe).small
    model = written(graph, tmp_path / "small.onnx")
    assert list(axes(model).values()) == [["batch", 3, "height", "width"], ["batch", 5, "2*height", "width - 2"]]
    batches = onnx_batches(graph, 0)
    assert [list(x.shape) for (x,) in batches] == [[1, 3, 16, 16], [2, 3, 15, 17]]
    assert check_onnx(tmp_path / "small.onnx", graph, [*batches, (torch.randn(3, 3, 40, 7),)]) <= 1e-4


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_the_opset_asked_for(opset: int, tmp_path: Path) -> None:
    model = written(small(HardCoded), tmp_path / "small.onnx", opset=opset)
    assert {o.domain: o.version for o in model.opset_import}[""] == opset
    assert check_onnx(tmp_path / "small.onnx", small(HardCoded), [(images(3),)]) <= 1e-4


def test_the_same_bytes_each_time_but_for_the_metadata(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    written(small(Residual), first, metadata={"who": "first"})
    written(small(Residual), second, metadata={"who": "second"})
    models = [onnx.load(path) for path in (first, second)]
    assert [{p.key: p.value for p in model.metadata_props}["who"] for model in models] == ["first", "second"]
    for model in models:
        model.ClearField("metadata_props")
    assert models[0].SerializeToString(deterministic=True) == models[1].SerializeToString(deterministic=True)


def test_a_mean_over_the_map_is_a_pooling(tmp_path: Path) -> None:
    model = written(small(Means), tmp_path / "small.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["GlobalAveragePool"], counts["ReduceMean"]) == (2, 3)  # one of the three leaves the axes out


@pytest.mark.parametrize(("largest", "device", "gates"), [(1152, "cpu", 1), (1151, "cpu", 0), (1152, "cuda", 0)])
def test_a_gate_is_spread_over_a_small_map(largest: int, device: str, gates: int, tmp_path: Path) -> None:
    """Of a convolution in blocks of channels; onnxruntime sees two maps of one shape, whatever the batch."""
    rewrite = functools.partial(tidy, small_map=largest)  # here it is 8 x 12 x 12
    model = written(small(Gated), tmp_path / "small.onnx", device=device, rewrite=rewrite)
    spread = [node.output[0] for node in model.graph.node if node.op_type == "Resize"]
    assert len(spread) == gates
    known = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    (product,) = (node for node in model.graph.node if set(spread) & set(node.input)) if spread else (None,)
    assert product is None or known[product.input[0]] == known[product.input[1]] == [known[spread[0]][0], 8, 12, 12]


def test_the_batch_is_not_counted_where_it_follows(tmp_path: Path) -> None:
    used = {node.op_type for node in written(small(Views), tmp_path / "small.onnx").graph.node}
    assert "Reshape" in used
    assert "Shape" not in used


def test_the_graph_is_tidy(tmp_path: Path) -> None:
    """BatchNorm is folded into the convolutions; only the slim weights are stored."""
    model = written(small(Residual), tmp_path / "small.onnx")
    used = {node.op_type for node in model.graph.node}
    assert used <= {"Conv", "Relu", "Add", "ReduceMean", "Gemm", "Constant"}
    stored = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert stored <= sum(t.numel() for t in small(Residual).tensors.values())


def test_a_rule_that_fails_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    class Failing(rewriter.RewriteRuleClassBase):
        def pattern(self, op, x):  # type: ignore[no-untyped-def]
            return op.Relu(x)

        def rewrite(self, op, x):  # type: ignore[no-untyped-def]
            raise ValueError("operands could not be broadcast together")

    written(small(Residual), tmp_path / "small.onnx", rewrite=functools.partial(tidy, rules=[Failing.rule()]))
    assert check_onnx(tmp_path / "small.onnx", small(Residual), [(images(3),)]) <= 1e-4


@pytest.mark.parametrize("bias", [True, False])
def test_a_video_convolution_with_and_without_bias(bias: bool, tmp_path: Path) -> None:
    first = nn.Conv3d(2, 8, (1, 3, 3), (1, 2, 1), padding=(0, 1, 1), bias=bias)
    net = nn.Sequential(first, nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1, groups=8, bias=bias)).eval()
    graph = trace(net, (torch.randn(1, 2, 4, 8, 8),))
    model = written(graph, tmp_path / "video.onnx")
    assert [len(node.input) for node in model.graph.node if node.op_type == "Conv"] == [3, 3 if bias else 2]
    assert check_onnx(tmp_path / "video.onnx", graph, [graph.inputs]) <= 1e-5


class NormOfAll(nn.Module):
    def __init__(self, order: float) -> None:
        super().__init__()
        self.conv, self.order = nn.Conv2d(3, 4, 3), order

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        return x / x.norm(self.order, keepdim=True), x.norm(self.order, dim=1)


@pytest.mark.parametrize("order", [1, 2, 3, math.inf])
def test_a_norm_over_all_axes_keeps_them(order: float, tmp_path: Path) -> None:
    graph = trace(NormOfAll(order).eval(), (images(),))
    written(graph, tmp_path / "norm.onnx")
    assert check_onnx(tmp_path / "norm.onnx", graph, [graph.inputs]) <= 1e-5


def test_what_onnx_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot write this model as ONNX: .*linalg_matrix_exp"):
        to_onnx(small(NotInOnnx), tmp_path / "small.onnx", opset=None, metadata={})


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    written(small(Residual), tmp_path / "small.onnx")
    data = (tmp_path / "small.onnx").read_bytes()
    for text in (str(Path(__file__).parent), "site-packages", "small_nets.py"):
        assert text.encode() not in data


def test_weights_that_one_file_cannot_hold(tmp_path: Path) -> None:
    """Beyond 2 GB they lie beside the ONNX file, which names them."""
    target = tmp_path / "big.onnx"
    with beside(target) as temporary:
        to_onnx(small(HardCoded), temporary, opset=None, metadata={}, largest_file=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert check_onnx(target, small(HardCoded), [(images(3),)]) <= 1e-4


def test_a_program_over_the_small_tensors() -> None:
    """What is exported and saved: parameters stay parameters, buffers stay buffers."""
    program = to_program(small(Residual))
    assert program is not None
    assert set(program.graph_signature.parameters) == {name for name, _ in Residual().named_parameters()}
    module = program.module()
    assert error(small(Residual).run((images(5),))[0], module(images(5))[0]) <= 1e-6


def test_a_graph_as_a_module_gives_what_the_model_gave() -> None:
    """A tensor where the model gave a tensor, a dict where it gave a dict."""
    graph = small(HardCoded)
    assert error(graph.run((images(3),))[0], graph_module(graph)(images(3))) <= 1e-6
    outputs = graph_module(small(TwoInputs))(*two_inputs(3))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {"logits": (3, 3), "size": (3,)}


# -- the check ------------------------------------------------------------------------------------------------------


def test_a_file_that_computes_something_else_fails_the_check(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    model = written(small(HardCoded), path)
    weight = next(t for t in model.graph.initializer if t.name == "fc2.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(1.001 * onnx.numpy_helper.to_array(weight), "fc2.weight"))
    onnx.save(model, path)
    with pytest.raises(ProofError, match=r"onnxruntime differs from PyTorch by .* allowed 1e-04.*not written"):
        check_onnx(path, small(HardCoded), [(images(3),)])


class Scores(nn.Module):
    """Sure that nothing is there: every score is some millionths."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 16)
        nn.init.constant_(self.score.bias, -12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.score(x).sigmoid().unsqueeze(1).transpose(1, 2)] * 2, 1)


class MeanScores(Scores):
    """As of a voice that is looked for in several frames."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 0].unflatten(-1, (16, -1)).mean(-1)


@pytest.mark.parametrize("kind", [Scores, MeanScores])
def test_the_rounding_of_a_sigmoid_near_zero_is_no_fault(tmp_path: Path, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    path, net, x = tmp_path / "scores.onnx", kind().eval(), torch.randn(64, 8)
    graph = trace(net, (x,))
    model = written(graph, path)
    session = onnxruntime.InferenceSession(str(path))
    assert error(net(x), torch.from_numpy(run_onnx(session, (x,))[0])) > 1e-4
    assert check_onnx(path, graph, [(x,)]) < 2.5e-7
    bias = next(t for t in model.graph.initializer if t.name == "score.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.1, "score.bias"))
    onnx.save(model, path)
    with pytest.raises(ProofError, match="onnxruntime differs"):
        check_onnx(path, graph, [(x,)])


def test_rounding_of_fused_kernels_is_told_from_a_fault_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, graph, x = tmp_path / "small.onnx", small(HardCoded), images(3)
    model = written(graph, path)
    plain, calls = run_onnx, []

    def fused(session: onnxruntime.InferenceSession, inputs: tuple[Any, ...]) -> list[np.ndarray]:
        calls.append(session)
        error = 2e-4 if session is calls[0] else 0  # of the session with fusions alone
        return [y * (1 + error) for y in plain(session, inputs)]

    monkeypatch.setattr("slim_model.export.check_onnx.run_onnx", fused)
    assert 1.9e-4 < check_onnx(path, graph, [(x,)]) < 2.1e-4
    calls.clear()
    weight = next(t for t in model.graph.initializer if t.name == "fc2.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.0005, "fc2.weight"))
    onnx.save(model, path)
    with pytest.raises(ProofError, match="onnxruntime differs"):
        check_onnx(path, graph, [(x,)])


def test_no_number_fails_the_check(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    model = written(small(HardCoded), path)
    weight = next(t for t in model.graph.initializer if t.name == "fc2.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "fc2.weight"))
    onnx.save(model, path)
    with pytest.raises(ProofError, match="onnxruntime differs from PyTorch by inf"):
        check_onnx(path, small(HardCoded), [(images(3),)])


def test_a_file_with_another_number_of_outputs_fails_the_check(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    model = written(small(TwoInputs), path)
    del model.graph.output[1]
    onnx.save(model, path)
    with pytest.raises(ProofError, match="the ONNX file has 1 outputs, the model 2"):
        check_onnx(path, small(TwoInputs), [two_inputs(3)])


def test_a_file_that_is_not_onnx_fails_the_check(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    lines = to_onnx(small(HardCoded), path, opset=None, metadata={})
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    said = r"ONNX that is not valid: .*NoSuchOperator.* It comes from small_nets.py:\d+ in forward: x = .*conv1"
    with pytest.raises(ExportError, match=said):
        check_onnx(path, small(HardCoded), [(images(3),)], lines)


class Enhancer(nn.Module):
    """A mask over a spectrum, and back (TEN-VAD, DTLN and their like): ``istft`` indexes with numbers of 32 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.a, self.b = nn.Conv1d(9, 8, 3, padding=1), nn.Conv1d(8, 9, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.stft(x, 16, 4, window=self.window, return_complex=True)
        mask = torch.sigmoid(self.b(torch.relu(self.a(s.abs()))))
        return torch.istft(s * mask, 16, 4, window=self.window, length=64)


def test_an_inverse_fourier_transform_is_valid_onnx(tmp_path: Path) -> None:
    """torch 2.15 writes the index of ``index_put`` as it is, and ONNX takes none of 32 bits there."""
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    graph = capture(trained(Enhancer()), (x,))
    written(graph, tmp_path / "enhancer.onnx")
    assert check_onnx(tmp_path / "enhancer.onnx", graph, [(x,)]) <= 1e-4


# -- beside ---------------------------------------------------------------------------------------------------------


def test_beside_replaces_the_target_when_all_is_well(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    with beside(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent.parent == tmp_path
        assert temporary.parent.name.startswith(".")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [b"old", None])
def test_beside_leaves_the_target_as_it_was(tmp_path: Path, fault: type[BaseException], before: bytes | None) -> None:
    target = tmp_path / "out.onnx"
    if before:
        target.write_bytes(before)

    def half_written() -> None:
        with beside(target) as temporary:
            temporary.write_bytes(b"half")
            raise fault

    with pytest.raises(fault):
        half_written()
    assert [path.name for path in tmp_path.iterdir()] == (["out.onnx"] if before else [])
    assert not before or target.read_bytes() == before


def test_beside_gives_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with beside(tmp_path / "out.onnx") as temporary:
        temporary.write_bytes(b"new")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "out.onnx")]
    assert modes[0] == modes[1]


def test_beside_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"cannot write to .*no_such.*Give another output place"),
        beside(tmp_path / "no_such" / "out.onnx"),
    ):
        pass


# -- what transformers have -----------------------------------------------------------------------------------------


class Biased(nn.Module):
    """Attention with a learned mask, and places in a buffer that is not saved."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(6), persistent=False)
        self.words, self.position = nn.Embedding(30, 16), nn.Embedding(6, 16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 3)
        self.bias = nn.Parameter(torch.zeros(1, 2, 6, 6))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens[:, :6]) + self.position(self.places)
        q, k, v = self.qkv(x).view(-1, 6, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        result: Tensor = self.proj(y.transpose(1, 2).contiguous().reshape(-1, 6, 16))
        return result


def test_attention_with_a_learned_mask_is_exported(tmp_path: Path) -> None:
    tokens, _ = two_inputs()
    graph = compile_model(trained(Biased()), (tokens,), Recipe.of(ratio=0.5, multiple_of=1)).small
    model = written(graph, tmp_path / "o.onnx")
    assert not any(isinstance(size, int) for name, sizes in axes(model).items() for size in sizes[:1]), (
        "the batch is free"
    )
    batches: list[tuple[Any, ...]] = [(two_inputs(batch)[0],) for batch in (1, 2, 5)]
    assert check_onnx(tmp_path / "o.onnx", graph, batches) <= 1e-5
