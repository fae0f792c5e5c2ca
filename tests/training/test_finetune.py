"""Fine-tuning: what it learns from, which epoch it takes, that it goes on where it was stopped."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from slim_model import InputError, restore, slim
from slim_model.data.augmentation import augmentation_of, cut_mix
from slim_model.data.datasets import Divided, rows_of
from slim_model.data.loss import distillation, hint
from slim_model.data.training_samples import open_samples
from slim_model.export.torch_files import save
from slim_model.pipeline.compile import compile_model, lesson_of
from slim_model.pipeline.compiled import Compiled
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.recovery.cut_points import inner_cut_points
from slim_model.reporting.report import make_report
from slim_model.training.finetune import Epoch, Tuned, _Training, finetune
from slim_model.training.resume import Resume
from slim_model.training.training_graph import eval_module, with_values
from small_nets import Residual, images, trained

EXAMPLE = (images(2),)


def labelled(count: int = 200) -> Divided:
    """Pictures that are darker or lighter as a whole, by class."""
    labels = torch.arange(count) % 5
    return Divided((0.3 * images(count) + (labels - 2.0).view(-1, 1, 1, 1), labels))


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def removed() -> Compiled:
    return compile_model(trained(Residual()), EXAMPLE, Recipe.of(0.5, multiple_of=1))


def recipe(**options: Any) -> Recipe:
    given = {"data": labelled(), "finetune": 2, "batch": 20, "lr": 0.02, "precision": "fp32"} | options
    return Recipe.of(0.5, multiple_of=1, **given)


_BESIDE = ("resume", "progress", "cut_points")


def tuned(removed: Compiled, **options: Any) -> Tuned:
    made = recipe(**{name: x for name, x in options.items() if name not in _BESIDE})
    more = {name: options[name] for name in _BESIDE if name in options}
    return finetune(removed.small, removed.dense, open_samples(made.data.data, EXAMPLE), lesson_of(made), **more)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- learning -------------------------------------------------------------------------------------------------------


def test_it_learns_from_labels(removed: Compiled) -> None:
    found = tuned(removed, distill=False, finetune=4)
    first, *_, last = found.epochs
    assert first.loss is None
    assert first.validation_accuracy is not None
    assert first.validation_accuracy < 0.5
    assert last.validation_accuracy is not None
    assert last.validation_accuracy > 0.8
    assert found.chosen > 0
    assert all(a.shape == removed.small.tensors[name].shape for name, a in found.graph.tensors.items())


def test_it_learns_from_the_dense_model_alone(removed: Compiled) -> None:
    """Without labels: the outputs come closer to the teacher's."""
    found = tuned(removed, data=labelled().tensors[0], finetune=3)
    assert found.settings["alpha"] == 1.0
    assert found.epochs[0].validation_accuracy is None
    assert found.epochs[found.chosen].validation_loss < 0.6 * found.epochs[0].validation_loss
    with pytest.raises(InputError, match="no labels: fine-tuning then needs the dense model as teacher"):
        tuned(removed, data=labelled().tensors[0], distill=False)


def test_it_learns_from_what_the_dense_model_says_inside(removed: Compiled) -> None:
    """Values behind each block come closer to the dense ones than where only the outputs are taught."""
    cut_points = inner_cut_points(removed.dense, removed.small, removed.kept_positions())
    names = [cut_point.name for cut_point in cut_points]
    assert names == ["relu", "relu_2", "relu_4"]
    probe = 0.3 * images(60)
    wanted = with_values(eval_module(removed.dense), names)(probe)[1]
    aims = [cut_point.wanted(x) for cut_point, x in zip(cut_points, wanted, strict=True)]

    def apart(weight: float) -> float:
        found = tuned(removed, alpha=1.0, hints=weight, cut_points=cut_points, finetune=6)
        assert found.settings["hints"] == (names if weight else [])
        return float(hint(with_values(eval_module(found.graph), names)(probe)[1], aims))

    assert apart(5.0) < 0.5 * apart(0.0)


@pytest.mark.parametrize(("augment", "sides"), [("crop", 1), ("crop+flip", 2), ("auto", 2), ("none", 1)])
def test_the_dense_model_is_asked_about_both_sides_of_what_is_mirrored(
    removed: Compiled, augment: str, sides: int
) -> None:
    made, x = recipe(augment=augment), images(6)
    run = _Training(removed.small, removed.dense, open_samples(made.data.data, EXAMPLE), lesson_of(made), set(), ())
    said, _ = run._asked((x,))
    assert said is not None
    both = [removed.dense.run((one,))[0] for one in (x, x.flip(-1))]
    torch.testing.assert_close(said[0], sum(both[:sides]) / sides)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_as_much_is_dropped_as_was_asked(share: float) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 400), nn.ReLU(), nn.Dropout(0.8), nn.Linear(400, 5))
    removed, made = compile_model(net.eval(), EXAMPLE, Recipe.of(0.5, multiple_of=1)), recipe(dropout=share)
    run = _Training(removed.small, removed.dense, open_samples(made.data.data, EXAMPLE), lesson_of(made), set(), ())
    dropped = [node for node in run.net.graph.nodes if "dropout" in str(node.target)]
    _, values = with_values(run.net, [dropped[0].name, dropped[0].args[0].name])(images(20))
    gone, whole = (float((x == 0).float().mean()) for x in values)
    assert gone - whole == pytest.approx(0.8 * share * (1 - whole), abs=0.02)
    assert run.settings()["dropout"] == share


def test_hints_take_a_place_to_compare(removed: Compiled) -> None:
    with pytest.raises(InputError, match="hints: nowhere does a single value pass"):
        tuned(removed, hints=1.0)


def test_what_is_as_good_as_it_can_be_is_left(removed: Compiled) -> None:
    """The teacher itself, at a rate that can only harm: the values before training are taken."""
    made = recipe(lr=0.5, finetune=1, alpha=1.0)
    found = finetune(removed.dense, removed.dense, open_samples(made.data.data, EXAMPLE), lesson_of(made))
    assert (found.chosen, found.epochs[0].validation_loss < found.epochs[1].validation_loss) == (0, True)
    assert same(found.graph.tensors, {name: tensor.detach() for name, tensor in removed.dense.tensors.items()})


def test_the_better_epoch() -> None:
    assert Epoch(1, 0.1, 0.4, 0).better_than(Epoch(1, 0.2, 0.5, 0))
    assert not Epoch(1, 0.1, 0.6, 0).better_than(Epoch(1, 0.1, 0.5, 0), flattery=0.1)


def test_the_values_ahead_of_training_give_way_where_loss_or_accuracy_says_so() -> None:
    start = Epoch(None, 0.2, 0.5, 0)
    assert [Epoch(1, loss, right, 0).better_than(start) for loss, right in ((0.1, 0.4), (0.3, 0.6))] == [True, True]
    assert not Epoch(1, 0.3, 0.5, 0).better_than(start)
    assert [Epoch(1, 0.3, right, 0).better_than(start, flattery=0.05) for right in (0.46, 0.44)] == [True, False]
    assert not Epoch(1, 0.3, None, 0).better_than(Epoch(None, 0.2, None, 0), flattery=0.05)


def test_epochs_are_compared_on_pictures_varied_alike(removed: Compiled) -> None:
    """At a rate that changes nothing, every epoch is as good as the first; mixed pictures have no accuracy."""
    for augment in ("crop+flip", "cutmix"):
        still = tuned(removed, augment=augment, alpha=1.0, lr=1e-12, optimizer="adamw")
        plain = tuned(removed, augment="none", alpha=1.0, finetune=1)
        first, second = (epoch.validation_loss for epoch in still.epochs[:2])
        assert second == pytest.approx(first, rel=0.2)  # BatchNorm still counts
        assert first != plain.epochs[0].validation_loss
        assert (still.epochs[0].validation_accuracy is None) == (augment == "cutmix")


def test_a_rate_that_is_too_high_is_an_error(removed: Compiled) -> None:
    with pytest.raises(InputError, match="fine-tuning diverged: the loss is no number"):
        tuned(removed, lr=1e12, optimizer="sgd", finetune=4)


def test_half_precision(removed: Compiled) -> None:
    found = tuned(removed, precision="bf16", finetune=1, distill=False)
    assert found.settings["precision"] == "bf16"
    assert all(t.dtype == removed.small.tensors[name].dtype for name, t in found.graph.tensors.items())
    assert found.epochs[1].loss == pytest.approx(tuned(removed, finetune=1, distill=False).epochs[1].loss, rel=0.05)


def test_a_batch_that_is_fixed() -> None:
    fixed = compile_model(trained(Residual()), (images(7),), Recipe.of(0.5, multiple_of=1, static_batch=True))
    found = tuned(fixed, finetune=1)
    assert found.settings["batch"] == 7
    assert found.epochs[1].loss is not None


def test_the_users_module_gets_the_values() -> None:
    model = trained(Residual())
    before = copy.deepcopy(model.state_dict())
    training: dict[str, Any] = {"finetune": 2, "lr": 0.02, "batch": 20, "distill": False, "precision": "fp32"}
    module, _, report = slim(model, images(), ratio=0.5, multiple_of=1, data=labelled(), **training)
    assert type(module) is Residual
    assert same(dict(model.state_dict()), before)
    plain = slim(model, images(), ratio=0.5, multiple_of=1).module
    assert module.fc.weight.shape == plain.fc.weight.shape
    assert not torch.equal(module.fc.weight, plain.fc.weight)  # type: ignore[arg-type]
    assert not torch.equal(module.bn.running_mean, plain.bn.running_mean)  # type: ignore[arg-type, union-attr]
    did = report.steps[-1]
    assert did["name"] == "fine-tuning"
    assert len(did["did"]["epochs"]) == 3
    assert did["did"]["chosen_epoch"] > 0


# -- loss -----------------------------------------------------------------------------------------------------------


def test_distillation_by_hand() -> None:
    """The sum written out, over classes; of one logit, over two."""
    own, taught = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [2.0, 2.0, -1.0]])
    for T in (1.0, 4.0):
        total = 0.0
        for s, t in zip(own.tolist(), taught.tolist(), strict=True):
            q, p = ([math.exp(x / T) for x in row] for row in (s, t))
            total += sum((b / sum(p)) * math.log((b / sum(p)) / (a / sum(q))) for a, b in zip(q, p, strict=True))
        assert float(distillation([own], [taught], T)) == pytest.approx(T**2 * total / 2, rel=1e-5)
    assert float(distillation([torch.zeros(1, 2)], [torch.tensor([[math.log(3), 0.0]])], 1.0)) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    p, q = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(1.0))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    for shape in ((1,), (1, 1)):
        found = distillation([torch.full(shape, -1.0)], [torch.full(shape, 2.0)], 1.0)
        assert float(found) == pytest.approx(expected, rel=1e-5)
    pair = [torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])], [torch.tensor([1.0, 5.0]), torch.tensor([0.0, 1.0])]
    assert float(distillation(*pair, 4.0)) == pytest.approx((2.0 / 8.0 + 0.0) / 2)


# -- samples --------------------------------------------------------------------------------------------------------


def test_what_is_validated_on_is_not_trained_on() -> None:
    whole = TensorDataset(torch.arange(100.0)[:, None], torch.arange(100))
    held = open_samples(whole, (torch.zeros(2, 1),))
    train, validation = held.divided(seed=3)
    parts = [set(part.rows.tolist()) for part in (train, validation)]
    assert [len(part) for part in parts] == [72, 8]
    assert parts[0] | parts[1] | set(rows_of(whole, "test").tolist()) == set(range(100))
    assert parts[1] != set(held.divided(seed=4)[1].rows.tolist())
    assert torch.equal(held.divided(seed=3)[1].rows, validation.rows)
    assert len(open_samples(labelled(30_000), EXAMPLE).divided(0)[1]) == 2000
    with pytest.raises(InputError, match="has 8 samples to train on"):
        open_samples(TensorDataset(torch.zeros(10, 1)), (torch.zeros(2, 1),)).divided(0)


@pytest.mark.parametrize(
    "source",
    [
        Divided((torch.arange(40.0)[:, None], torch.arange(40))),
        [(torch.arange(40.0)[:, None][i : i + 7], torch.arange(40)[i : i + 7]) for i in range(0, 40, 7)],
        DataLoader(TensorDataset(torch.arange(40.0)[:, None], torch.arange(40)), batch_size=6),
    ],
    ids=["tensors", "batches", "loader"],
)
def test_samples_of_every_source(source: Any) -> None:
    held = open_samples(source, (torch.zeros(2, 1),), mean=(1.0,), std=(2.0,))
    assert (len(held), held.labelled) == (40, True)
    places = torch.tensor([5, 0, 17]), torch.tensor([1])
    for place, batch in zip(places, held.batches(places), strict=True):
        assert batch.labels is not None
        assert batch.labels.tolist() == place.tolist()
        assert torch.equal(batch.inputs[0].flatten(), (place - 1.0) / 2)
    moved = next(held.batches(places[:1], augment=lambda x: x + 2)).inputs[0]
    assert torch.equal(moved.flatten(), (places[0] + 2 - 1.0) / 2 if held.prepare.mean else (places[0] - 1.0) / 2 + 2)


def test_pictures_are_varied() -> None:
    """One white pixel: it is moved by up to an eighth, and in colour mirrored, in each picture otherwise."""
    vary = augmentation_of("auto", EXAMPLE)
    assert vary is not None
    picture = torch.zeros(3, 16, 16)
    picture[:, 5, 4] = 1
    places = {tuple(torch.nonzero(vary(picture)[0])[0].tolist()) for _ in range(300)}
    rows, columns = ({place[i] for place in places} for i in (0, 1))
    assert rows == set(range(3, 8))
    assert columns == set(range(2, 7)) | set(range(9, 14))
    assert augmentation_of("auto", (torch.zeros(2, 1, 16, 16),)) is None
    grey = augmentation_of("crop", (torch.zeros(2, 1, 16, 16),))
    assert grey is not None
    assert {int(torch.nonzero(grey(picture[:1]))[0, 2]) for _ in range(300)} == set(range(2, 7))
    assert augmentation_of("auto", (torch.zeros(2, 16),)) is None
    assert augmentation_of("none", EXAMPLE) is None
    with pytest.raises(InputError, match="augment 'flip' is for pictures"):
        augmentation_of("flip", (torch.zeros(2, 16),))


def test_boxes_of_other_pictures() -> None:
    """Each picture keeps a share of its own, drawn evenly, in a box; the rest is of one other."""
    torch.manual_seed(0)
    x = torch.arange(2000.0)[:, None, None, None].expand(-1, 3, 20, 20)
    mixed = cut_mix(x)
    kept = (mixed == x).float().mean((1, 2, 3))
    assert 0.55 < kept.mean() < 0.75  # half, and what of a box lies outside
    assert kept.min() < 0.15
    assert kept.max() > 0.99
    for picture, own in zip(mixed[:200, 0], x[:200, 0, 0, 0], strict=True):
        rows, columns = torch.nonzero(picture != own, as_tuple=True)
        if len(rows):
            box = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert len(box.unique()) == 1


def test_mixed_pictures_have_no_labels(removed: Compiled) -> None:
    with pytest.raises(InputError, match="for which labels do not hold: add --alpha 1"):
        tuned(removed, augment="flip+cutmix")
    plain, mixed = (tuned(removed, augment=augment, alpha=1.0, finetune=1) for augment in ("none", "cutmix"))
    assert mixed.settings["augmented"]
    assert mixed.epochs[1].loss != plain.epochs[1].loss


# -- stopped and resumed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_ends_as_an_uninterrupted_one(removed: Compiled, tmp_path: Path, optimizer: str) -> None:
    resume = Resume(tmp_path / "OUT.onnx.finetune")
    options = {"finetune": 3, "optimizer": optimizer, "lr": 0.005}
    whole = tuned(removed, **options)

    def stop(text: str) -> None:
        if text.startswith("fine-tuning: epoch 2 of 3, loss"):
            raise Stopped

    with pytest.raises(Stopped):
        tuned(removed, **options, resume=resume, progress=stop)
    said: list[str] = []
    again = tuned(removed, **options, resume=resume, progress=said.append)
    assert {text.split(",")[0] for text in said} == {"fine-tuning: epoch 3 of 3"}
    assert same(again.graph.tensors, whole.graph.tensors)
    assert [e.loss for e in again.epochs] == [e.loss for e in whole.epochs]
    assert again.chosen == whole.chosen
    resume.remove(rounds=1)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_only_as_the_same_run(removed: Compiled, tmp_path: Path) -> None:
    resume = Resume(tmp_path / "OUT.onnx.finetune")
    tuned(removed, finetune=1, resume=resume)
    with pytest.raises(InputError, match=r"OUT.onnx.finetune was left by another run: lr was 0.02, and is 0.03"):
        tuned(removed, finetune=1, lr=0.03, resume=resume)
    other = compile_model(trained(Residual(), seed=1), EXAMPLE, Recipe.of(0.5, multiple_of=1))
    with pytest.raises(InputError, match="left by another run: the weights differ"):
        tuned(other, finetune=1, resume=resume)
    resume.place.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="is not a checkpoint of fine-tuning"):
        tuned(removed, finetune=1, resume=resume)


def test_the_random_numbers_of_the_user_are_left_alone(removed: Compiled) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    tuned(removed, finetune=1)
    assert torch.equal(torch.rand(3), expected)


# -- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finetune": 1, "data": None}, "fine-tuning needs data"),
        ({"finetune": -1}, "finetune -1 is not a number of epochs"),
        ({"optimizer": "lbfgs"}, "optimizer 'lbfgs' is unknown; it is one of auto, sgd, adamw"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown; it is one of auto, fp32, bf16"),
        ({"lr": 0.0}, "lr 0 is no rate"),
        ({"alpha": 1.5}, "alpha 1.5 is not between 0"),
        ({"temperature": 0.0}, "temperature 0 is not above 0"),
        ({"dropout": 1.5}, "dropout 1.5 is not between 0"),
        ({"hints": -1.0}, "hints -1 is no weight"),
        ({"hints": 1.0, "distill": False}, "hints are what the dense model says inside"),
        ({"augment": "mixup"}, "augment 'mixup' is unknown; it is one of auto, none, crop"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.of(**options)


class Products(nn.Module):
    """An operator that takes no mixed precision, or one that overwrites what its gradient needs."""

    def __init__(self, *, overwrites: bool) -> None:
        super().__init__()
        self.embed, self.both, self.head = nn.Linear(6, 8), nn.Bilinear(8, 8, 8), nn.Linear(8, 5)
        self.overwrites = overwrites

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = x.sigmoid()
        if self.overwrites:
            y.mul_(2)
        result: Tensor = self.head(self.both(x, y))
        return result


def test_what_cannot_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16: it is trained in fp32 then, unless it was asked for. Not at all: that is an error."""
    monkeypatch.setattr("slim_model.training.finetune._has_bf16", lambda device: True)
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    compiled = {
        overwrites: compile_model(Products(overwrites=overwrites).eval(), (x[:2],), Recipe.of(0.5, multiple_of=1))
        for overwrites in (False, True)
    }

    def run(overwrites: bool, precision: str) -> Tuned:
        made = recipe(data=x, finetune=1, precision=precision)
        removed = compiled[overwrites]
        return finetune(removed.small, removed.dense, open_samples(x, (x[:2],)), lesson_of(made))

    assert run(False, "auto").settings["precision"] == "fp32"
    with pytest.raises(InputError, match="the model cannot be trained: All tensors must have the same dtype"):
        run(False, "bf16")
    with pytest.raises(InputError, match="the model cannot be trained: one of the variables needed for gradient"):
        run(True, "auto")


def test_a_model_without_parameters_to_train() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(6, 3))
            self.register_buffer("head", torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.relu(x.mean((2, 3)) @ self.weight.T) @ self.head.T  # type: ignore[operator, union-attr]
            return result

    compiled = compile_model(Fixed().eval(), EXAMPLE, Recipe.of(0.5, multiple_of=1))
    with pytest.raises(InputError, match="the model cannot be trained: its outputs depend on no parameters"):
        tuned(compiled)


# -- rounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global"])
def test_rounds_end_at_the_ratio(scope: Any) -> None:
    """16 and 24 channels at 0.75 in two rounds: 8 and 12, then 4 and 6. Positions are those of the dense model."""
    model = trained(Residual())
    once, twice = (
        compile_model(model, EXAMPLE, Recipe.of(0.75, scope=scope, multiple_of=1, iterations=k)) for k in (1, 2)
    )
    assert len(twice.passes) == 2
    total = [sum(after for _, after in c.plan.widths) for c in (once, twice.passes[0], twice)]
    assert total[2] == pytest.approx(total[0], abs=1)
    assert total[1] == pytest.approx(2 * total[0], abs=1)
    if scope == "local":
        assert {after for _, after in twice.passes[0].plan.widths} == {8, 12}
        assert {after for _, after in twice.plan.widths} == {4, 6}
    assert twice.slim_cost.macs < twice.passes[0].slim_cost.macs < twice.dense_cost.macs == once.dense_cost.macs
    for (owner, axis), kept in twice.kept_positions().items():
        dense = twice.dense.tensors[owner].detach()
        small = twice.small.tensors[owner]
        assert small.shape[axis] == len(kept)
        for other, positions in twice.kept_positions().items():
            if other[0] == owner:
                dense = dense.index_select(other[1], torch.from_numpy(positions))
        assert torch.equal(dense, small), owner
    for group in make_report(twice, Recipe.of(0.75), module_is_own=True).groups:
        made = next(s for s in group["slices"] if s["role"] == "makes")
        assert group["kept"] == made["kept"]
        assert group["before"] == twice.dense.tensors[made["parameter"]].shape[made["axis"]]
        assert group["after"] == len(group["kept"])


def test_rounds_count_from_the_dense_model() -> None:
    compiled = compile_model(trained(Residual()), EXAMPLE, Recipe.of(0.5, of="params", multiple_of=1, iterations=2))
    assert compiled.met is not None
    assert compiled.met.dense == compiled.dense_cost.params
    assert 0.97 * compiled.met.limit <= compiled.slim_cost.params <= compiled.met.limit
    assert compiled.met.limit == pytest.approx(compiled.dense_cost.params / 2, rel=0.02)


def test_rounds_of_training(tmp_path: Path) -> None:
    """Each round trains, and goes on with what the last one learned; the small model can be restored."""
    model, resume = trained(Residual()), Resume(tmp_path / "OUT.onnx.finetune")
    made = recipe(finetune=1, iterations=2, distill=False)
    compiled = compile_model(model, EXAMPLE, made, resume=resume)
    assert [step.name for step in compiled.steps if step.name in ("removal", "fine-tuning")] == [
        *("removal", "fine-tuning"),
        *("removal", "fine-tuning"),
    ]
    assert len(compiled.passes) == 2
    assert not torch.equal(compiled.passes[1].dense.tensors["fc.bias"], model.fc.bias)  # type: ignore[arg-type, union-attr]
    assert len(list(tmp_path.iterdir())) == 2
    again = compile_model(model, EXAMPLE, made, resume=resume)
    assert same(again.small.tensors, compiled.small.tensors)
    resume.remove(rounds=2)
    assert not list(tmp_path.iterdir())
    small = make_small_module(model, compiled.small)
    save(compiled.small, small, tmp_path / "small.safetensors", compiled.removal(made))
    restored = restore(trained(Residual()), tmp_path / "small.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(restored(*EXAMPLE), compiled.small.run(EXAMPLE)[0], atol=1e-5, rtol=1e-4)


def test_rounds_that_cannot_be() -> None:
    with pytest.raises(InputError, match="iterations 0 is not a number of rounds"):
        Recipe.of(iterations=0)
    with pytest.raises(InputError, match="iterations 2 takes a ratio and the engine slim; engine 'torch-pruning'"):
        Recipe.of(iterations=2, engine="torch-pruning")
    with pytest.raises(InputError, match="target 'macs=1M' takes one round"):
        Recipe.of(iterations=2, target="macs=1M")
