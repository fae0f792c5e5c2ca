"""Fine-tuning: what it learns from, which epoch it takes, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetuning import EXAMPLE, labelled, recipe, same, tuned
from slim_model import InputError, slim
from slim_model.data.loss import hint
from slim_model.data.training_samples import open_samples
from slim_model.pipeline.compile import compile_model, lesson_of
from slim_model.pipeline.compiled import Compiled
from slim_model.recipe import Recipe
from slim_model.recovery.cut_points import inner_cut_points
from slim_model.training.finetune import Epoch, Tuned, _Training, finetune
from slim_model.training.training_graph import eval_module, with_values
from small_nets import Residual, images, trained

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
    aims = [cut_point.target(x) for cut_point, x in zip(cut_points, wanted, strict=True)]

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


def test_mixed_pictures_have_no_labels(removed: Compiled) -> None:
    with pytest.raises(InputError, match="for which labels do not hold: add --alpha 1"):
        tuned(removed, augment="flip+cutmix")
    plain, mixed = (tuned(removed, augment=augment, alpha=1.0, finetune=1) for augment in ("none", "cutmix"))
    assert mixed.settings["augmented"]
    assert mixed.epochs[1].loss != plain.epochs[1].loss


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
    monkeypatch.setattr("slim_model.training.finetune.has_bf16", lambda device: True)
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
