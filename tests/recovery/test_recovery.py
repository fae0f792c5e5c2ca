"""Recovery: what can be made up for exactly is, what would hurt is not done, and what was proven still holds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_model import InputError, Recipe, Slices
from slim_model.commands.slim import run_job
from slim_model.data.accuracy import Exam, Step
from slim_model.data.holdout import split_off_held_out
from slim_model.data.open_data import open_data
from slim_model.export.options import OutputOptions
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.loading.source import Source, SourceOptions
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.own_module import make_small_module
from slim_model.recipe_files.job import Job
from slim_model.recovery import recover as recovery
from slim_model.recovery.batchnorm_statistics import recalibrate
from slim_model.recovery.least_squares import fit_layers
from slim_model.recovery.linear_layers import find_linear_layers
from slim_model.recovery.options import LEVELS
from slim_model.recovery.recover import recover
from slim_model.recovery.referee import Referee, Verdict
from slim_model.recovery.streamed_run import MEMORY
from small_nets import HardCoded, Residual, error, images, trained


def last_goes(slices: Slices) -> Tensor:
    """The channels made last go first."""
    return -torch.arange(slices.width).double()


def recovered(model: nn.Module, level: str, x: Tensor, *, batch: int = 16, **options: Any) -> Compiled:
    options = {"ratio": 0.125, "criterion": last_goes, "multiple_of": 1} | options
    return compile_model(model, (x[:2],), Recipe.of(recover=level, data=[*x.split(batch)], samples=len(x), **options))  # type: ignore[arg-type]


def steps(compiled: Compiled) -> dict[str, Step]:
    return {step.name: step for step in compiled.steps}


# -- what a layer can take is given back ----------------------------------------------------------------------------


class Repeats(nn.Module):
    """8 channels, of which 3 and 7 are combinations of the two that begin their half; ``offset`` is added to them."""

    def __init__(self, read: nn.Module, offset: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, self.read = nn.Conv2d(3, 8, 3, padding=1), read
        weight, bias = self.make.weight, self.make.bias
        assert bias is not None
        with torch.no_grad():
            for here in (0, 4):
                weight[here + 3] = 2 * weight[here] - weight[here + 1]
                bias[here + 3] = 2 * bias[here] - bias[here + 1] + offset

    def forward(self, x: Tensor) -> Tensor:
        return self.read(F.max_pool2d(self.make(x) * 0.5, 1, 4))


class Tokens(nn.Module):
    def __init__(self, read: nn.Module) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x.flatten(2).transpose(1, 2))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x.flatten(1))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv1d(8, 6, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x.flatten(2))


class Product(nn.Module):
    """``addmm`` with a weight that lies the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.mean((2, 3)), self.weight)


class Stream(nn.Module):
    """Two readers of one stream, one of them behind a depthwise convolution that treats all channels alike."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        with torch.no_grad():
            self.depthwise.weight[:] = self.depthwise.weight[:1]
        self.one, self.two = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.norm(self.two(self.depthwise(x)))


class Attention(nn.Module):
    """One projection for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, -1))


READERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "strided conv": lambda: nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "same": lambda: nn.Conv2d(8, 6, (2, 3), padding="same"),
    "grouped conv": lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "conv and norm": lambda: nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
    "conv on a line": Line,
    "flattened": Flat,
    "tokens": lambda: Tokens(nn.Linear(8, 5)),
    "addmm": Product,
    "stream": Stream,
    "attention": lambda: Tokens(Attention()),
}


@pytest.mark.parametrize("level", ["affine", "full"])
@pytest.mark.parametrize("reader", READERS)
def test_a_channel_that_repeats_others_is_not_missed(reader: str, level: str) -> None:
    model, x = Repeats(READERS[reader]()).eval(), images(40)
    keep = ("read.read.qkv",) if reader == "attention" else ()
    ratio = 0.25 if reader == "grouped conv" else 0.125
    result = recovered(model, level, x, ratio=ratio, keep=keep)
    assert result.plan.widths[0] == ((4, 3) if reader == "grouped conv" else (8, 7))
    (expected,) = result.dense.run((x,))
    (left,) = recovered(model, "none", x, ratio=ratio, keep=keep).small.run((x,))
    assert error(expected, left) > 0.02
    assert error(expected, result.small.run((x,))[0]) < 1e-4
    module, own, _ = make_small_module(model, result.small)
    assert own
    assert error(expected, module(x)) < 1e-4


@pytest.mark.parametrize("read", [
    lambda: nn.Conv2d(8, 6, 3),
    lambda: nn.Sequential(nn.Conv2d(8, 6, 2, bias=False), nn.BatchNorm2d(6)),
    lambda: nn.Conv2d(8, 6, 1, groups=2),
    lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
])  # fmt: skip
@pytest.mark.parametrize("level", ["bias", "affine", "full"])
def test_a_constant_channel_becomes_a_constant(read: Callable[[], nn.Module], level: str) -> None:
    model, x = Repeats(read()).eval(), images(40)
    with torch.no_grad():
        model.make.weight[[3, 7]] = 0
        model.make.bias[[3, 7]] = 3.0  # type: ignore[index]
    result = recovered(model, level, x, ratio=0.25, criterion=lambda s: (torch.arange(s.width) % 4 != 3).double())
    assert result.plan.widths[0] in ((8, 6), (4, 3))
    assert error(result.dense.run((x,))[0], result.small.run((x,))[0]) < 1e-4


def test_borders_are_right_on_average() -> None:
    """A constant channel is none where a convolution pads it: the mean over all places is kept."""
    model, x = Repeats(nn.Conv2d(8, 6, 3, padding=1)).eval(), images(40)
    with torch.no_grad():
        model.make.weight[7] = 0
        model.make.bias[7] = 3.0  # type: ignore[index]
    result = recovered(model, "bias", x)
    expected, found = (graph.run((x,))[0].mean((0, 2, 3)) for graph in (result.dense, result.small))
    assert torch.allclose(expected, found, atol=1e-4)


def test_without_a_place_for_a_constant_the_fit_goes_through_the_origin() -> None:
    model, x = Repeats(nn.Conv2d(8, 6, 1, bias=False), offset=3.0).eval(), images(40)
    (expected,) = (result := recovered(model, "affine", x)).dense.run((x,))
    assert steps(result)["affine"].did["error_after"] < steps(result)["affine"].did["error_before"]
    assert error(expected, recovered(model, "bias", x).small.run((x,))[0]) == error(
        expected, recovered(model, "none", x).small.run((x,))[0]
    )


# -- full fits what the model itself takes in -----------------------------------------------------------------------


def test_later_layers_make_up_for_what_earlier_ones_lost() -> None:
    """A block whose first layer lost a channel that nothing repeats: only the sum behind it can know."""
    model, x = trained(Residual()), images(200)
    errors = [
        steps(recovered(model, level, x, ratio=0.3, criterion="l1"))[level].did["error_after"]
        for level in ("bias", "affine", "full")
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_a_layer_is_the_least_squares_fit_of_the_dense_output() -> None:
    """By hand: one hidden layer, its output from what is left, with a one appended. Judged on what it is fitted on."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)), torch.randn(500, 6)
    plain = recovered(model, "none", x, ratio=0.5)
    fit, _ = split_off_held_out(open_data([x], plain.dense.inputs, samples=500), plain.dense)
    layers = find_linear_layers(plain.dense, plain.small, plain.kept_positions())
    graph, took = fit_layers(plain.dense, plain.small, layers, fit, fit, ridges=(1e-9,))
    assert took.keys() == {"2.weight"}
    mine = x[torch.arange(500) % 5 != 4]
    columns = torch.cat([F.relu(model[0](mine))[:, :8], torch.ones(400, 1)], 1).double()
    solved = torch.linalg.lstsq(columns, model(mine).double()).solution
    assert torch.allclose(graph.tensors["2.weight"].double(), solved[:-1].T, atol=1e-4)
    assert torch.allclose(graph.tensors["2.bias"].double(), solved[-1], atol=1e-4)


# -- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["bias", "affine", "full"])
@pytest.mark.parametrize("net", [Residual, HardCoded])
def test_batches_do_not_matter(net: type[nn.Module], level: str) -> None:
    x = images(60)
    one, other = (
        recovered(trained(net()), level, x, batch=batch, ratio=0.4, criterion="l1", recalibrate=True).small.run((x,))[0]
        for batch in (7, 60)
    )
    assert error(one, other) < 1e-3  # products of float32 columns


def test_where_nothing_is_remembered_the_result_is_the_same() -> None:
    x = images(60)
    plain = recovered(trained(Residual()), "none", x, ratio=0.4)
    fit, held = split_off_held_out(open_data([*x.split(16)], plain.dense.inputs, samples=len(x)), plain.dense)
    layers = find_linear_layers(plain.dense, plain.small, plain.kept_positions())
    fitted = {m: fit_layers(plain.dense, plain.small, layers, fit, held, memory=m)[0] for m in (MEMORY, 0)}
    one, other = (recalibrate(graph, fit, memory=memory)[0].tensors for memory, graph in fitted.items())
    assert any(not torch.equal(tensor, plain.small.tensors[name]) for name, tensor in one.items())
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_dense_model_and_the_structure_stay() -> None:
    model, x = trained(Residual()), images(40)
    before = copy.deepcopy(model.state_dict())
    plain, result = (recovered(model, level, x, ratio=0.4, recalibrate=True) for level in ("none", "full"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(plain.small.module.code) == str(result.small.module.code)
    assert {n: t.shape for n, t in plain.small.tensors.items()} == {n: t.shape for n, t in result.small.tensors.items()}


def test_recalibration_is_what_brute_force_counts() -> None:
    """The second BatchNorm is counted behind the first one's new statistics, over all samples at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    x = images(30) * 3 + 1
    graph = trace(model, (x[:2],))
    fit, _ = split_off_held_out(open_data([*x.split(11)], graph.inputs), graph)
    counted, norms = recalibrate(graph, fit)
    assert norms == 2
    mine = x[torch.arange(30) % 5 != 4]
    with torch.no_grad():
        first = model[0](mine)
        variance, mean = torch.var_mean(first, (0, 2, 3))
        ahead = F.relu(F.batch_norm(first, mean, variance, model[1].weight, model[1].bias))
        second = torch.var_mean(model[3](ahead), (0, 2, 3))
    found = counted.tensors
    for name, wanted in (
        ("1.running_var", variance),
        ("1.running_mean", mean),
        ("4.running_var", second[0]),
        ("4.running_mean", second[1]),
    ):
        assert torch.allclose(found[name], wanted, rtol=1e-5, atol=1e-6), name


# -- the guard ------------------------------------------------------------------------------------------------------


def opposed(count: int) -> Tensor:
    """What is held out is another world: there the third value is the first with the other sign."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = torch.where(torch.arange(count) % 5 == 4, -x[:, 0], x[:, 0])
    return x


@pytest.mark.parametrize("level", ["affine", "full"])
def test_what_would_hurt_is_not_done(level: str) -> None:
    """Of the three values handed on, the last goes. It equals the first on the samples that are fitted only."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    with torch.no_grad():
        model[0].weight.copy_(torch.cat([torch.eye(3)[[0, 1, 1, 2]]]))
        model[0].bias.zero_()
    result = recovered(model, level, opposed(200), ratio=0.25)
    none = recovered(model, "none", opposed(200), ratio=0.25)
    assert steps(result)[level].did["error_after"] >= 0
    error_after = Referee(
        result.dense, split_off_held_out(open_data([opposed(200)], result.dense.inputs), result.dense)[1]
    )
    assert error_after.error(result.small) <= error_after.error(none.small)
    assert not steps(result)["affine"].did["layers"]["1.weight"].startswith("affine")


def test_a_step_that_makes_outputs_worse_is_taken_back() -> None:
    """BatchNorm's statistics of the fitted samples fit the held ones badly."""
    model, x = trained(Residual()), images(60)
    x[torch.arange(60) % 5 != 4] *= 20
    result, plain = (recovered(model, "none", x, recalibrate=flag) for flag in (True, False))
    assert steps(result)["recalibrate"].did["taken_back"]
    assert all(torch.equal(t, plain.small.tensors[n]) for n, t in result.small.tensors.items())


def test_nearer_values_of_other_classes_are_no_better() -> None:
    """40 of 100 samples change sides for the worse, then 2, then 2 for the worse and 3 for the better."""
    agrees = torch.arange(100) < 95
    before = Verdict(0.5, agrees)
    assert before.agreement == pytest.approx(0.95)
    assert not Verdict(0.1, agrees & (torch.arange(100) >= 40)).better_than(before)
    assert Verdict(0.1, agrees & (torch.arange(100) >= 2)).better_than(before)
    assert Verdict(0.1, (torch.arange(100) >= 2) & (torch.arange(100) < 98)).better_than(before)
    assert not Verdict(0.6, torch.ones(100, dtype=torch.bool)).better_than(before), "the error is larger"
    assert Verdict(0.1).better_than(Verdict(0.2))


def test_a_step_that_costs_classes_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs [0.1, 0] of wanted [5, 0] become [4.5, 4.6]: nearer, and none has the class."""

    def nearer(case: Any, small: Graph) -> tuple[Graph, dict[str, Any]]:
        return small.with_tensors(small.tensors | {"bias": torch.tensor([4.5, 4.6])}), {}

    dense = trace(nn.Linear(3, 2), (torch.zeros(4, 3),))
    dense, small = (dense.with_tensors(dense.tensors | {"bias": torch.tensor([b, 0.0])}) for b in (5.0, 0.1))
    monkeypatch.setitem(recovery.STEPS, "bias", nearer)
    _, (step,) = recover(dense, small, {}, open_data([torch.zeros(50, 3)], dense.inputs), "bias", Exam(None))
    assert step.did["agreement_before"] == 1
    assert step.did["agreement_after"] == 0
    assert step.did["taken_back"]


# -- through the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "attention"), zip([*LEVELS, None], itertools.cycle(["width", "both"]), strict=False), ids=str
)
def test_the_file_holds_the_recovered_model(tmp_path: Path, level: Any, attention: Any) -> None:
    x, labels = images(80), torch.arange(80) % 5
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=labels.numpy())
    torch.save(trained(Residual()), tmp_path / "net.pt")
    recipe = Recipe.of(
        0.4,
        "l1",
        multiple_of=1,
        data=f"npz:{tmp_path / 'data.npz'}",
        recover=level,
        recalibrate=True,
        attention=attention,
    )
    job = Job(
        Source(tmp_path / "net.pt", SourceOptions(inputs=("2x3x16x16",), trust_pickle=True)),
        tmp_path / "out.onnx",
        recipe.but(bench=False),
        OutputOptions(save=tmp_path / "small.pt"),
    )
    report = run_job(job, lambda stage: None)
    assert report.proof["onnx_max_rel_error"] < 1e-4
    names = ["dense", "removal", *LEVELS["full" if level is None else level], "recalibrate"]
    assert [step["name"] for step in report.steps] == names
    assert all(step["accuracy"] is not None for step in report.steps)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    saved = torch.load(tmp_path / "small.pt", weights_only=False)
    assert error(torch.from_numpy(found), saved["model"](x) if isinstance(saved, dict) else saved(x)) < 1e-4


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(
        InputError, match="recover 'more' is unknown; it is one of none, bias, affine, full, blocks, network, data-"
    ):
        Recipe.of(recover="more", data=images())  # type: ignore[arg-type]
    for options in ({"recover": "affine"}, {"recalibrate": True}):
        with pytest.raises(InputError, match="needs data, and none was given: add --data SPEC"):
            Recipe.of(**options)  # type: ignore[arg-type]
