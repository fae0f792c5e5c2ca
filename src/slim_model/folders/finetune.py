"""A folder that was written, and the dense model as teacher -> the same folder with trained values, proven again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from slim_model.data.augmentation import fixed_seed
from slim_model.data.loss import distillation
from slim_model.errors import InputError, ProofError
from slim_model.folders.plan import Plan
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.running import inputs_of, load_folder, outputs_of
from slim_model.measuring.machine import has_bf16
from slim_model.progress import Progress
from slim_model.proof.tolerance import TOLERANCE, relative_error
from slim_model.recipe import Recipe
from slim_model.training.optimizers import optimizer_for

_POSITIONS = 2048  # that go through at a time, with their logits
_PICTURES = 32
_APART = 8  # one sample in so many judges the epochs
_STEPS = 8  # that an epoch has at least, where there are samples for them
_BYTES_SMALL, _BYTES_DENSE, _BYTES_LOGIT = 20, 4, 24
"""Of a parameter in training: its value, gradient, two moments of AdamW and the best value; of the teacher's; and of a
logit of either model with what the loss makes of it."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Trained:
    """``losses``: on the samples kept apart, before training and after each epoch; ``chosen``: whose values the folder
    has, 0 for those before. ``error``: of the folder against the trained model; ``settings`` in the report's words."""

    losses: tuple[float, ...]
    chosen: int
    error: float
    settings: Mapping[str, Any]


def check_training(plan: Plan, recipe: Recipe) -> None:
    """Raise InputError, before any work, where both models in float32 do not fit in the memory that is free."""
    dense = plan.checkpoint.whole or plan.checkpoint
    words = plan.config.get("vocab_size")
    logits = _POSITIONS * words if isinstance(words, int) else 0
    needed = _BYTES_SMALL * plan.parameters + _BYTES_DENSE * dense.parameters + _BYTES_LOGIT * logits
    free = psutil.virtual_memory().available
    if recipe.training.finetune and needed > free:
        raise InputError(
            f"--finetune needs about {needed / 1e9:,.1f} GB for the small model in training and the dense one as its "
            f"teacher, and {free / 1e9:,.1f} GB are free here. Leave out --finetune, or train the folder that is "
            "written elsewhere: transformers loads it as any other."
        )


@torch.no_grad()
def check_logits(dense: Any, recipe: Recipe) -> None:
    """Raise InputError where the model has none that the small one could learn."""
    if recipe.training.finetune and "logits" not in dense(**inputs_of(dense, recipe.seed), return_dict=True):
        raise InputError(
            f"--finetune learns the dense model's logits, and a {type(dense).__name__} gives none. Leave it out, or "
            "give a folder whose model has its head."
        )


def finetune_folder(plan: Plan, place: Path, samples: Tensor, recipe: Recipe, progress: Progress) -> Trained:
    """Train the model in ``place`` on what the dense one says of ``samples``, and write the values of the best epoch
    there. Raises InputError where training diverges, ProofError where the folder is not what was trained."""
    checkpoint = plan.checkpoint
    whole = checkpoint.whole or checkpoint
    training = _Training(
        load_folder(place, checkpoint.dtype).model.float(),
        load_folder(whole.path, whole.dtype).model.float().requires_grad_(False),
        samples,
        recipe,
    )
    losses = [training.examined()]
    best, chosen = training.values(), 0
    for number in range(1, recipe.training.finetune + 1):
        started = time.perf_counter()
        loss = training.epoch(number)
        losses.append(training.examined())
        if losses[-1] < losses[chosen]:
            best, chosen = training.values(), number
        left = (recipe.training.finetune - number) * (time.perf_counter() - started)
        progress(f"fine-tuning: epoch {number} of {recipe.training.finetune}, loss {loss:.4f}, {left:.0f} s left")
    small = training.small
    small.load_state_dict(best)
    _write_values(small, place)
    # What is compared is the trained model as the folder's type can hold it; what is no weight was never in that type.
    for parameter in small.parameters():
        parameter.data = parameter.data.to(checkpoint.dtype).float()
    x, again = inputs_of(small, recipe.seed), load_folder(place, checkpoint.dtype).model.float()
    error = abs(relative_error(outputs_of(small.eval(), x), outputs_of(again, x)))
    if not error <= TOLERANCE:
        raise ProofError(
            f"the folder that was written differs from the model that was trained by {error:.1e} of the largest "
            f"output; at most {TOLERANCE:g} is allowed. Nothing was kept of it. Please report the model_type."
        )
    return Trained(tuple(losses), chosen, error, training.settings)


class _Training:
    """The small model, its teacher and what both are asked about."""

    def __init__(self, small: Any, dense: Any, samples: Tensor, recipe: Recipe) -> None:
        self.small, self.dense, self.seed, options = small, dense, recipe.seed, recipe.training
        count = len(samples) - max(1, len(samples) // _APART)
        if count < 1:
            raise InputError(f"--finetune needs two samples, and the data has {len(samples)}. Give more.")
        self.samples, self.apart, self.temperature = samples[:count], samples[count:], options.temperature
        self.at_a_time = _PICTURES if samples.is_floating_point() else max(1, _POSITIONS // samples.shape[1])
        batch = min(recipe.data.batch, max(1, count // _STEPS))
        steps = -(-count // batch)
        kind = "adamw" if options.optimizer == "auto" else options.optimizer
        self.optimizer, self.schedule, rate = optimizer_for(kind, small, options.lr, steps * options.finetune)
        self.bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16(_CPU))
        self.settings = {
            "optimizer": kind,
            "lr": rate,
            "batch": batch,
            "temperature": options.temperature,
            "precision": "bf16" if self.bf16 else "fp32",
            "trained_on": count,
            "validated_on": len(self.apart),
        }

    def epoch(self, number: int) -> float:
        """Mean loss over one pass, in an order of its own."""
        first, total = self.seed * 1_000_003 + number, 0.0
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(first))
        self.small.train()
        with fixed_seed(first, _CPU):
            for rows in order.split(self.settings["batch"]):
                total += self._step(self.samples[rows]) * len(rows)
        return total / len(self.samples)

    def _step(self, batch: Tensor) -> float:
        """Parts of the batch go through one by one, so that their logits alone are held."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in batch.split(self.at_a_time):
            with torch.enable_grad():
                loss = self._loss(part) * (len(part) / len(batch))
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not total < float("inf"):
            raise InputError(
                f"fine-tuning diverged: the loss is no number. Give a smaller rate than --lr {self.settings['lr']:g}."
            )
        self.optimizer.step()
        self.schedule.step()
        return total

    def _loss(self, part: Tensor) -> Tensor:
        """How far the small model's logits are from the dense one's, at each position."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                taught = self.dense(**{self.dense.main_input_name: part}).logits
            given = self.small(**{self.small.main_input_name: part}).logits
        flat = (given.flatten(0, -2),), (taught.flatten(0, -2),)
        return distillation(*flat, self.temperature)

    @torch.no_grad()
    def examined(self) -> float:
        """The mean loss on the samples kept apart, as the model is used."""
        self.small.eval()
        losses = [float(self._loss(part)) * len(part) for part in self.apart.split(self.at_a_time)]
        return sum(losses) / len(self.apart)

    def values(self) -> dict[str, Tensor]:
        """A copy of all that the small model holds."""
        return {name: tensor.detach().clone() for name, tensor in self.small.state_dict().items()}


def _write_values(model: Any, place: Path) -> None:
    """Into the shards that are there, each tensor under its name and in its type. Its class may call a tensor otherwise
    than its files do: save_pretrained knows how."""
    written, own = open_checkpoint_folder(place), model.state_dict()
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".trained.") as beside:
        model.save_pretrained(beside)
        fresh = open_checkpoint_folder(Path(beside))
        for shard in written.shards:
            held = {}
            for name, stored in written.tensors.items():
                if stored.shard == shard:
                    # A second name of a tensor is left out by save_pretrained; what is in neither was not trained.
                    value = fresh.read(name) if name in fresh.tensors else own.get(name, written.read(name))
                    held[name] = value.to(stored.dtype).contiguous().clone()
            save_file(held, place / f"{shard}.part", metadata={"format": "pt"})
            os.replace(place / f"{shard}.part", place / shard)
