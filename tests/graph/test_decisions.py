"""Graphs that follow one run: both sides are given its decisions, and everything else is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from micronets import normal, randomised
from slim_model.api import slim
from slim_model.cutting.cut import CutFailed, cut_of
from slim_model.cutting.shrink_graph import shrink
from slim_model.errors import ExportError, ProofError
from slim_model.export.check_onnx import check_onnx
from slim_model.export.eager_model import EagerModel, difference, runnable_form
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.decisions import Decided, DecisionRecorder, DecisionReplayer, decision_of, replay_decision
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.proof.own_module import make_small_module
from slim_model.proof.prove import prove
from slim_model.recipe import Recipe

aten = torch.ops.aten
RECIPE = Recipe.of(0.5, "random", multiple_of=1)


class Detector(nn.Module):
    """Scores places, keeps the best, suppresses their neighbours one by one, and describes those that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)
        self.score, self.hidden, self.box = nn.Conv2d(10, 1, 1), nn.Linear(10, 16), nn.Linear(16, 4)
        self.offset = nn.Parameter(torch.zeros(64))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        features = F.relu(self.body(F.relu(self.stem(torch.stack(images)))))
        scores, places = (self.score(features).flatten() + self.offset).topk(20)
        places = places[scores > scores.mean()]
        kept: list[int] = []
        for place in places.tolist():
            if all(abs(place - other) > 1 for other in kept):
                kept.append(place)
        places = places[torch.isin(places, torch.tensor(kept))]
        described = F.relu(self.hidden(features[0].flatten(1).t()[places]))
        return [{"boxes": self.box(described), "places": places}]


def example(seed: int = 0) -> tuple[list[Tensor]]:
    torch.manual_seed(seed)
    return ([torch.randn(3, 8, 8)],)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomised(Detector())


@pytest.fixture(scope="module")
def compiled(model: nn.Module) -> Compiled:
    return compile_model(model, example(), RECIPE)


def test_it_is_proven_given_the_decisions(compiled: Compiled) -> None:
    assert compiled.dense.program is None
    assert not compiled.coupling.labelled.pinned_nodes
    assert compiled.coupling.free_share == 1
    assert compiled.proof.batches == (3, 3)  # the example and another picture
    assert any("makes decisions from its values" in text for text in compiled.warnings)


def test_by_itself_the_small_graph_would_decide_otherwise(compiled: Compiled) -> None:
    """Else these tests would show nothing."""
    small = compiled.small
    own: Any
    with torch.no_grad():
        try:
            own = Decided(small.module, {}).run(initial_env=small.bind(small.inputs))[1]
        except RuntimeError:  # a size that is a number in the graph does not fit
            own = torch.zeros(0)
    assert not torch.equal(own, small.run(small.inputs)[1])


def test_the_module_decides_for_itself(model: nn.Module, compiled: Compiled) -> None:
    module, own, _ = make_small_module(model, compiled.small)
    assert own
    assert isinstance(module, Detector)
    assert module.stem.out_channels == 6
    for seed in range(3):
        found = module(*example(seed))[0]
        assert found["boxes"].isfinite().all()
        assert found["boxes"].shape == (len(found["places"]), 4)


@pytest.mark.parametrize("name", ["stem.weight", "body.weight", "score.weight", "hidden.weight", "box.weight"])
def test_a_wrong_cut_is_found_before_and_behind_a_decision(compiled: Compiled, name: str) -> None:
    with pytest.raises(CutFailed, match="its values differ"):
        again(compiled, {name: compiled.small.tensors[name].roll(1, 1)})


def test_a_fault_that_only_a_decision_sees_is_found(compiled: Compiled) -> None:
    with pytest.raises(CutFailed, match="the values that it decides on differ"):
        again(compiled, {"offset": compiled.small.tensors["offset"] + 1})


def again(compiled: Compiled, changed: dict[str, Tensor]) -> None:
    """The proof, with other tensors in the small graph."""
    keep = compiled.plan.keep
    small, replay = shrink(compiled.coupling, keep)
    small = small.with_tensors(small.tensors | changed)
    prove(compiled.dense, small, cut_of(compiled.coupling, keep), replay, [compiled.dense.inputs])


class Remembering(Detector):
    """Divides by a width that it noted when it was made."""

    width = 12

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return super().forward([image * self.stem.out_channels / self.width for image in images])


def test_a_class_that_computes_something_else_is_refused() -> None:
    with pytest.raises(ProofError, match="does not compute what was proven"):
        slim(randomised(Remembering()), example(), ratio=0.5, multiple_of=1)


class Gated(Detector):
    """Weighs places by a mean over channels, convolves along them, and looks them up by a shared index."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 3, padding=1)
        self.before = nn.Conv2d(3, 6, 3, padding=1)
        self.after = nn.Conv2d(6, 3, 3, padding=1)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 5, 4]))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        x = F.relu(self.before(images[0][None]))
        x = x * self.mix(x.mean((2, 3))[:, None])[0, 0, :, None, None]
        x = x[:, self.order] + F.relu(x)[:, self.order]
        x = x * x.mean(1, keepdim=True).sigmoid()
        return super().forward([images[0] + self.after(x)[0]])


def test_what_its_own_class_would_take_otherwise_is_left_whole() -> None:
    """Only the class is handed out of a model that decides, so that nothing may be written otherwise."""
    result = slim(randomised(Gated()), example(), ratio=0.5, multiple_of=1)
    assert isinstance(result.module, Gated)
    assert result.module.before.out_channels == 6
    assert result.module.stem.out_channels == 6


def test_a_statistic_of_a_model_that_decides_is_a_reason_to_keep_channels() -> None:
    class Weighed(Detector):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            features = F.relu(self.stem(images[0][None]))
            places = (features * features.mean(1, keepdim=True)).amax((0, 1))
            return super().forward([images[0] * places])

    result = slim(randomised(Weighed()), example(), ratio=0.5, multiple_of=1)
    assert "aten.mean.dim" in {pin["op"] for pin in result.report.pinned}


class Strict(Detector):
    """Refuses what the small model finds by itself."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = super().forward(images)
        places = found[0]["places"].tolist()
        if not hasattr(self, "seen"):
            self.seen = places
        if places != self.seen:
            raise ValueError("other places")
        return found


def test_a_class_that_does_not_run_by_itself_is_refused() -> None:
    model = randomised(Strict())
    model(*example())
    with pytest.raises(ProofError, match="does not compute what was proven"):
        slim(model, example(), ratio=0.5, multiple_of=1)


def test_the_graph_of_one_run_is_not_written(compiled: Compiled, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="decisions"):
        to_onnx(compiled.small, tmp_path / "out.onnx", opset=None, metadata={})


class Thresholded(Detector):
    """What the older exporter can follow: how many are kept is a value to it."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        features = F.relu(self.body(F.relu(self.stem(images[0][None]))))
        scores, places = (self.score(features).flatten() + self.offset).topk(20)
        kept = torchvision.ops.nms(self.box(self.hidden(features[0].flatten(1).t())).cumsum(1)[places], scores, 0.4)
        if len(kept) == 0:
            kept = places[:1]
        return [{"kept": features[0].flatten(1).t()[kept], "places": places[kept]}]


def test_a_module_that_decides_is_written_with_its_decisions(tmp_path: Path) -> None:
    model = randomised(Thresholded())
    compiled = compile_model(model, example(), RECIPE)
    assert compiled.dense.decisions
    module, *_ = make_small_module(model, compiled.small)
    source, path = runnable_form(compiled.small, module), tmp_path / "out.onnx"
    to_onnx(source, path, opset=None, metadata={"made_by": "test"})
    batches = [*onnx_batches(source, 0), *(tuple(example(seed)[0]) for seed in range(1, 4))]
    assert len({len(source.run(inputs)[1]) for inputs in batches}) > 1
    assert check_onnx(path, source, batches) <= 1e-5
    assert onnx.load(path).metadata_props[0].value == "test"


def test_a_module_that_the_exporter_does_not_take_is_refused(
    model: nn.Module, compiled: Compiled, tmp_path: Path
) -> None:
    class Failing(Detector):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            raise RuntimeError("not like this")

    with pytest.raises(ExportError, match="not like this"):
        to_onnx(runnable_form(compiled.small, Failing()), tmp_path / "out.onnx", opset=None, metadata={})


class Ranked(nn.Module):
    """The best three of six values, of which ``tied`` differ by less than rounding does."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.gaps = torch.tensor([0.0, 1.0, 2.0, 2.0 + (1e-7 if tied else 0.5), 4.0, 5.0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, places = (x + self.gaps).topk(3)
        return torch.stack([scores, 2 * scores], 1), places


def ranked(tied: bool) -> EagerModel:
    model = Ranked(tied)
    return EagerModel(model, trace(model, (torch.ones(6),)))


def difference_from(model: EagerModel, inputs: tuple[Tensor, ...], got: list[Tensor]) -> float:
    return difference(model, inputs, model.run(inputs), got)


@pytest.mark.parametrize(
    ("tied", "places", "fits"),
    [
        (False, [5, 4, 3], True),
        (False, [4, 5, 3], True),
        (False, [5, 4, 2], False),
        (False, [5, 4, 4], False),
        (True, [5, 4, 2], True),
        (True, [5, 4, 1], True),  # as many as may differ do
        (True, [5, 0, 1], False),
        (True, [5, 4], True),
    ],
)
def test_rows_may_differ_where_rounding_decides(tied: bool, places: list[int], fits: bool) -> None:
    chosen = torch.tensor(places)
    scores = (torch.ones(6) + Ranked(tied).gaps)[chosen]
    got = [torch.stack([scores, 2 * scores], 1), chosen]
    assert (difference_from(ranked(tied), (torch.ones(6),), got) < 1e-4) is fits


class Rounding(nn.Module):
    """All that it gives is made of the last digits of its input."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        digits = (x * 1e5).sin()
        scores, places = digits.topk(3)
        return scores, places


def test_where_rounding_decides_everything_nothing_fits() -> None:
    torch.manual_seed(0)
    x = torch.rand(100)
    model = EagerModel(Rounding(), trace(Rounding(), (x,)))
    other = model.run((x * (1 + 1e-6),))
    assert difference_from(model, (x,), model.run((x,))) == 0
    assert difference_from(model, (x,), other) == float("inf")


def test_a_file_that_gives_other_rows_is_refused(tmp_path: Path) -> None:
    to_onnx(ranked(False), tmp_path / "ranked.onnx", opset=None, metadata={})
    assert check_onnx(tmp_path / "ranked.onnx", ranked(False), [(torch.ones(6),)]) < 1e-5
    other = Ranked(False)
    other.gaps = other.gaps.flip(0) + 0.3
    deciding = EagerModel(other, trace(other, (torch.ones(6),)))
    with pytest.raises(ProofError, match=r"gives other rows \(boxes\) than PyTorch"):
        check_onnx(tmp_path / "ranked.onnx", deciding, [(torch.ones(6),)])


def test_outputs_of_another_shape_do_not_fit() -> None:
    scores = torch.ones(3)
    assert difference_from(ranked(False), (torch.ones(6),), [scores, scores.long()]) == float("inf")
    assert difference_from(ranked(False), (torch.ones(6),), [torch.ones(0, 2), torch.ones(0).long()]) == float("inf")


# -- one operator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "arguments", "dim"),
    [
        (aten.topk.default, (3, 1), 1),
        (aten.sort.default, (1, True), 1),
        (aten.max.dim, (1,), 1),
        (aten.min.dim, (0, True), 0),
        (aten.median.dim, (-1,), -1),
    ],
    ids=str,
)
def test_values_are_those_at_the_places_given(func: Any, arguments: tuple[Any, ...], dim: int) -> None:
    x, y = normal(4, 6), -normal(4, 6)
    decision = decision_of(func, (x,), func(x, *arguments))
    assert decision is not None
    same = replay_decision(func, (x, *arguments), {}, func(x, *arguments), decision)
    assert all(map(torch.equal, same, func(x, *arguments)))
    values, places = replay_decision(func, (y, *arguments), {}, func(y, *arguments), decision)
    assert not torch.equal(places, func(y, *arguments)[1])
    kept = places if places.dim() == 2 else places.unsqueeze(dim)
    assert torch.equal(values.flatten(), y.gather(dim, kept).flatten())


def test_what_follows_from_whole_numbers_is_no_decision() -> None:
    flags = torch.tensor([True, False])
    assert decision_of(aten.nonzero.default, (flags,), torch.nonzero(flags)) is None
    assert decision_of(aten.relu.default, (normal(2),), normal(2)) is None
    assert decision_of(aten.gt.Scalar, (normal(2), 0), flags) is not None


def test_flags_of_other_channels_stay() -> None:
    with DecisionRecorder() as noted:
        torch.gt(normal(4), 0)
    with DecisionReplayer(noted):
        assert (torch.ones(2) > 0).tolist() == [True, True]


def test_another_decision_is_refused() -> None:
    with DecisionRecorder() as noted:
        normal(4).argmax()
    with pytest.raises(LookupError, match="argmin"), DecisionReplayer(noted):
        normal(4).argmin()
