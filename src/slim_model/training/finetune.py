"""Fine-tuning: the small graph is trained with the dense model as teacher.

Structure stays as it was proven. The dense model is the teacher (``loss.distillation``). The epoch that does best on
samples kept apart from the training data is taken, the values before training among them. A run that was stopped goes
on after its last whole epoch, and ends with the same values: whatever is random follows from the seed and the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slim_model import distributed
from slim_model.data.accuracy import classes
from slim_model.data.augmentation import augmentation_of, choose_augmentations, cut_mix, fixed_seed
from slim_model.data.batches import Batch, pad_batch
from slim_model.data.loss import Loss, distillation, hint, total_loss
from slim_model.data.training_samples import Samples
from slim_model.errors import InputError, first_line
from slim_model.graph.graph import Graph
from slim_model.graph.promises import same_sizes
from slim_model.graph.tensor_trees import batch_of, copy_tensors, not_finite, tensors_among
from slim_model.measuring.machine import has_bf16
from slim_model.progress import Progress, say_nothing
from slim_model.recovery.cut_points import CutPoint
from slim_model.training.optimizers import optimizer_for, optimizer_kind
from slim_model.training.options import TrainingOptions
from slim_model.training.resume import Resume, digest
from slim_model.training.training_graph import (
    eval_module,
    training_module,
    with_trained_values,
    with_values,
)

_EVERY_S = 10.0
_FLATTERY = 0.005
"""Of accuracy, where labels are learned too (FashionNet: 0.7 points, told by the test split)."""
_PLAIN = (str, int, float, bool, tuple, type(None))


@dataclass(frozen=True, slots=True)
class Epoch:
    """``loss``: the mean over the epoch's samples; ``validation_*``: after it, on the samples kept apart; ``accuracy``
    is None where there are no classes to get right."""

    loss: float | None
    validation_loss: float
    validation_accuracy: float | None
    seconds: float

    def better_than(self, other: Epoch, flattery: float = 0.0) -> bool:
        """By the loss. The values ahead of training, of no ``loss``, also give way to an accuracy above theirs less
        ``flattery``: on samples that the dense model most likely learned, what was fitted to it looks better."""
        lower = self.validation_loss < other.validation_loss
        if other.loss is not None or self.validation_accuracy is None or other.validation_accuracy is None:
            return lower
        return lower or self.validation_accuracy > other.validation_accuracy - flattery


@dataclass(frozen=True, slots=True)
class Tuned:
    """``epochs``: before training and after each; ``chosen``: whose values the graph holds, 0 for those before."""

    graph: Graph
    epochs: tuple[Epoch, ...]
    chosen: int
    settings: dict[str, Any]

    def did(self) -> dict[str, Any]:
        """In the words of the report."""
        return self.settings | {"epochs": [asdict(epoch) for epoch in self.epochs], "chosen_epoch": self.chosen}


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one training goes by, beside the models and the samples. ``loss``: of the user's own, in the place of cross
    entropy. ``recipe``: every option of the run by name; where one differs a stopped training does not go on."""

    options: TrainingOptions
    batch: int = 64
    loss: Loss | None = None
    device: str = "cpu"
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)


def check_samples(options: TrainingOptions, samples: Samples) -> None:
    """Raise InputError, before anything is removed, where these options cannot be had with these samples."""
    samples.divided(0)
    if not samples.labelled and not options.distill:
        raise InputError(f"{samples.name} has no labels: fine-tuning then needs the dense model as teacher, distill.")
    if not callable(options.augment) and "cutmix" in options.augment and _teacher_share(options, samples) < 1:
        raise InputError("augment cutmix makes pictures of two classes, for which labels do not hold: add --alpha 1.")


def _teacher_share(options: TrainingOptions, samples: Samples) -> float:
    """How much of the loss is the teacher's: all of it where there are no labels."""
    return (1.0 if not samples.labelled else options.alpha) if options.distill else 0.0


def finetune(
    small: Graph,
    teacher: Graph,
    samples: Samples,
    lesson: Lesson,
    *,
    frozen: set[str] | None = None,
    cut_points: Sequence[CutPoint] = (),
    resume: Resume | None = None,
    progress: Progress = say_nothing,
) -> Tuned:
    """Train ``small`` on what ``teacher`` and the labels say, and on the teacher's values at ``cut_points`` where
    ``hints`` have a weight. Returns the graph with the values of the best epoch on the samples kept apart."""
    options = lesson.options
    check_samples(options, samples)
    training = _Training(small, teacher, samples, lesson, frozen or set(), cut_points if options.hints else ())
    epochs = [training.examined(None, 0.0)]
    best, chosen = training.values(), 0
    # A stopped run goes on with the values, the optimizer and the best epoch that it had.
    if resume and (saved := distributed.share_from_first(lambda: resume.load(training.identity()))):
        epochs = [Epoch(**row) for row in saved["epochs"]]
        best, chosen = saved["best"], saved["chosen"]
        training.load(saved["run"])
    while len(epochs) <= options.finetune:
        number, started = len(epochs), time.perf_counter()
        loss = training.epoch(number, progress)
        epoch = training.examined(loss, time.perf_counter() - started)
        if epoch.better_than(epochs[chosen], _FLATTERY if training.alpha < 1 else 0.0):
            best, chosen = training.values(), number
        epochs.append(epoch)
        if resume and distributed.rank() == 0:
            done = {"epochs": list(map(asdict, epochs)), "best": best, "chosen": chosen, "run": training.state()}
            resume.save(training.identity(), done)
        progress(_said(number, options.finetune, epoch))
    # The processes have counted other batches: all take the first one's values.
    distributed.copy_from_first(best)
    graph = same_sizes(small.with_tensors(small.tensors | best), small, "finetune")
    return Tuned(graph, tuple(epochs), chosen, training.settings())


def _said(number: int, epochs: int, epoch: Epoch) -> str:
    accuracy = "" if epoch.validation_accuracy is None else f", validation accuracy {epoch.validation_accuracy:.2%}"
    left = (epochs - number) * epoch.seconds
    return f"fine-tuning: epoch {number} of {epochs}, loss {epoch.loss:.4f}{accuracy}, {_duration(left)} left"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class _Training:
    """One training: the module, its optimizer and what they learn from."""

    def __init__(self, small: Graph, teacher: Graph, samples: Samples, lesson: Lesson, frozen: set[str],
                 cut_points: Sequence[CutPoint]) -> None:  # fmt: skip
        self.cut_points = cut_points
        options = lesson.options
        if options.hints and not cut_points:
            raise InputError("hints: nowhere does a single value pass that the dense model has too. Leave out --hints.")
        self.small, self.lesson, self.options, self.start = small, lesson, options, digest(small)
        self.train, self.validation = samples.divided(lesson.seed)
        self.augment = augmentation_of(options.augment, small.inputs)
        self.device = distributed.device(lesson.device)
        names = [cut_point.name for cut_point in cut_points]
        # Hints compare values inside, so that both modules give them behind their outputs.
        self.net = with_values(
            training_module(small, frozen=frozen, dropout=options.dropout, device=self.device), names
        )
        self.joint = _joint(self.net, lesson.loss is not None)
        self.alpha = _teacher_share(options, samples)
        asked = self.alpha > 0 or bool(cut_points)
        self.teacher = with_values(eval_module(teacher, device=self.device), names) if asked else None
        self.varied = choose_augmentations(options.augment, small.inputs)
        self.bf16 = self._in_bf16(options.precision)
        self.fixed = None if small.dynamic_batch else batch_of(small.inputs)
        self.batch = self.fixed or max(1, min(lesson.batch, len(self.train)) // distributed.world_size())
        self.step = self.batch * distributed.world_size()
        # A last batch that is not full is left out: BatchNorm counts it as much as a whole one.
        self.steps = len(self.train) // self.step
        if self.steps == 0:
            raise InputError(f"{samples.name} has {len(self.train)} samples to train on; one step takes {self.step}.")
        self.kind = optimizer_kind(small, options.optimizer)
        self.optimizer, self.schedule, self.rate = optimizer_for(
            self.kind, self.net, options.lr, self.steps * options.finetune
        )

    def settings(self) -> dict[str, Any]:
        return {
            "optimizer": self.kind,
            "lr": self.rate,
            "batch": self.step,
            "augmented": self.augment is not None or bool(self.varied),
            "processes": distributed.world_size(),
            "alpha": self.alpha,
            "dropout": self.options.dropout,
            "hints": [cut_point.name for cut_point in self.cut_points],
            "precision": "bf16" if self.bf16 else "fp32",
            "trained_on": len(self.train),
            "validated_on": len(self.validation),
        }

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        told = self.lesson.recipe.items()
        said = {name: str(x) if isinstance(x, _PLAIN) else type(x).__name__ for name, x in told}
        return {"recipe": said, "settings": self.settings(), "weights": self.start}

    # -- learning -----------------------------------------------------------------------------------------------------

    def epoch(self, number: int, progress: Progress) -> float:
        """Mean loss over one pass in an order of its own."""
        first, share = self.lesson.seed * 1_000_003 + number, distributed.world_size()
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(first))
        rows = [chosen[distributed.rank() :: share] for chosen in order[: self.steps * self.step].split(self.step)]
        with fixed_seed(first + 7919 * distributed.rank(), self.device):
            total, started, said = 0.0, time.perf_counter(), time.perf_counter()
            for step, batch in enumerate(self.train.batches(rows, self.augment), 1):
                total += self._step(batch)
                if time.perf_counter() - said > _EVERY_S:
                    said = time.perf_counter()
                    left = (said - started) * (self.steps * (self.options.finetune - number + 1) / step - 1)
                    progress(
                        f"fine-tuning: epoch {number} of {self.options.finetune}, {step} of {self.steps} batches, "
                        f"loss {total / step:.4f}, {_duration(left)} left"
                    )
        distributed.copy_from_first(dict(self.net.named_buffers()))
        return distributed.mean_over_ranks(total / self.steps)

    def _step(self, batch: Batch) -> float:
        inputs = self._mixed(batch)
        with self._precision():
            taught, hints = self._asked(inputs)
            with torch.enable_grad():
                outputs, values = self.joint(*inputs)
        with torch.enable_grad():
            loss = self._loss(outputs, taught, batch)
            if self.cut_points:  # of the teacher, the channels that stay in the small model
                whole = [cut_point.target(x) for cut_point, x in zip(self.cut_points, hints, strict=True)]
                loss = loss + self.options.hints * hint(*([x[: batch.samples] for x in xs] for xs in (values, whole)))
        if not_finite(loss):
            raise InputError(
                f"fine-tuning diverged: the loss is no number. Give a smaller rate than --lr {self.rate:g}, or "
                "check the data."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _mixed(self, batch: Batch) -> tuple[Any, ...]:
        first, *others = batch.inputs
        return tuple(map(self._placed, (cut_mix(first) if "cutmix" in self.varied else first, *others)))

    def _asked(self, inputs: tuple[Any, ...]) -> tuple[list[Tensor] | None, Sequence[Tensor]]:
        """What the teacher says, and its values at the cut points. Where pictures are mirrored at random, it is asked
        about both sides of each: the mean is right more often (ResNet-56 on CIFAR-10: 94.2 % for 93.4)."""
        if self.teacher is None:
            return None, ()
        said, values = self.teacher(*inputs)
        taught = tensors_among(said)
        if "flip" in self.varied and len(taught) == 1 and taught[0].dim() == 2:
            other, _ = self.teacher(inputs[0].flip(-1), *inputs[1:])
            taught = [(taught[0] + tensors_among(other)[0]) / 2]
        return taught, values

    def _loss(self, given: Any, taught: list[Tensor] | None, batch: Batch) -> Tensor:
        """(1 - alpha) labels + alpha teacher."""
        parts, outputs = [], tensors_among(given)
        if self.alpha < 1:
            own = [x[: batch.samples].float() for x in outputs]
            labels = None if batch.labels is None else batch.labels.to(self.device)
            parts.append((1 - self.alpha) * total_loss(self.lesson.loss, own, labels, batch.samples) / batch.samples)
        if taught is not None:
            cut = [x[: batch.samples] for x in outputs], [x[: batch.samples] for x in taught]
            parts.append(self.alpha * distillation(*cut, self.options.temperature))
        return torch.stack(parts).sum()

    def examined(self, loss: float | None, seconds: float) -> Epoch:
        """The graph's eval form on the samples kept apart."""
        return distributed.share_from_first(lambda: self._examined(loss, seconds))

    def _examined(self, loss: float | None, seconds: float) -> Epoch:
        """On pictures varied as in training, each time alike: as they are the dense model most likely knows them."""
        net = eval_module(self.graph(), device=self.device)
        apart, right, count = 0.0, 0, 0
        scored = self.validation.labelled and "cutmix" not in self.varied
        rows = torch.arange(len(self.validation)).split(self.batch)
        with torch.no_grad(), fixed_seed(self.lesson.seed, self.device):
            for batch in self.validation.batches(rows, self.augment):
                inputs = self._mixed(pad_batch(batch, self.small))
                outputs = tensors_among(net(*inputs))
                taught = self._asked(inputs)[0]
                apart += float(self._loss(outputs, taught, batch)) * batch.samples
                count += batch.samples
                answers = None if batch.labels is None else classes(outputs, batch.labels)
                scored = scored and answers is not None
                if answers is not None and batch.labels is not None:
                    right += int((answers[: batch.samples].cpu() == batch.labels.flatten()).sum())
        return Epoch(loss, apart / count, right / count if scored else None, round(seconds, 3))

    # -- values -------------------------------------------------------------------------------------------------------

    def graph(self) -> Graph:
        return with_trained_values(self.small, self.net)

    def values(self) -> dict[str, Tensor]:
        return self.graph().tensors

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    # -- speed --------------------------------------------------------------------------------------------------------

    def _in_bf16(self, precision: str) -> bool:
        """``auto``: where the machine has it and every operator of the model does. Raises InputError where the model
        cannot be trained at all."""
        if precision == "bf16" or (precision == "auto" and has_bf16(self.device)):
            refused = self._refusal(bf16=True)
            if refused is None or precision == "bf16":
                return self._unless(refused)
        return not self._unless(self._refusal(bf16=False))

    def _unless(self, refused: str | None) -> bool:
        if refused is None:
            return True
        raise InputError(f"the model cannot be trained: {refused}. Leave out --finetune.")

    def _refusal(self, *, bf16: bool) -> str | None:
        """Why one step on the example fails, if it does. Tried on a copy."""
        net = training_module(self.small, device=self.device)
        if not any(parameter.requires_grad for parameter in net.parameters()):
            return "its outputs depend on no parameters"
        copies = copy_tensors(self.small.inputs)
        with torch.random.fork_rng(), torch.enable_grad():
            try:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    outputs = [
                        x.float().sum() for x in tensors_among(net(*map(self._placed, copies))) if x.requires_grad
                    ]
                torch.stack(outputs).sum().backward()
            except (RuntimeError, ValueError) as error:
                return first_line(error)
        return None

    def _placed(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        form = torch.channels_last if x.dim() == 4 else torch.contiguous_format  # up to twice as fast on a CPU
        return x.to(self.device).contiguous(memory_format=form)

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def _joint(net: nn.Module, own_loss: bool) -> nn.Module:
    """Averages gradients over all processes; a loss of the user's may not look at every output."""
    if distributed.world_size() == 1:
        return net
    return nn.parallel.DistributedDataParallel(net, find_unused_parameters=own_loss)
