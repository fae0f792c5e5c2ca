"""One number per batch from the model's outputs and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slim_model.errors import InputError

Loss = Callable[[Any, Any], Tensor]
"""``(outputs, labels)`` -> one loss for each sample, or their mean. Outputs: a tensor, or a list where the model has
several; labels are None where the data has none."""


Losses = Callable[[Tensor], Tensor]
"""bool ``(trials, channel)``, what is removed -> the mean loss of each trial."""


def total_loss(loss: Loss | None, outputs: Sequence[Tensor], labels: Tensor | None, samples: int) -> Tensor:
    """The sum over samples. Without ``loss``: cross entropy, or its binary form where there is one output."""
    result = (loss or cross_entropy)(outputs[0] if len(outputs) == 1 else list(outputs), labels)
    if not isinstance(result, Tensor) or result.shape not in ((), (samples,)):
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise InputError(f"the loss gave {shape}; it must give one number, or one for each of {samples} samples.")
    return result * samples if result.dim() == 0 else result.sum()


def cross_entropy(outputs: Any, labels: Any) -> Tensor:
    """``logits [[0, 0]], label 1 -> [0.693]``. Log-probabilities in place of logits give the same."""
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model has {len(outputs)} outputs, so the loss must be given: loss=callable in Python.")
    if outputs.dim() == 1 or outputs.shape[1] == 1:
        scores = outputs.reshape(len(outputs), -1)
        return F.binary_cross_entropy_with_logits(
            scores, labels.reshape(len(outputs), -1).to(scores), reduction="none"
        ).mean(1)
    classes = outputs.shape[1]
    if outputs.dim() - 1 != labels.dim() or int(labels.max()) >= classes or int(labels.min()) < 0:
        raise InputError(
            f"labels of shape {tuple(labels.shape)} up to {int(labels.max())} do not fit outputs of shape "
            f"{tuple(outputs.shape)}. Give class numbers from 0, one for each sample, or a loss of your own: "
            "loss=callable in Python."
        )
    return F.cross_entropy(outputs, labels.long(), reduction="none").reshape(len(outputs), -1).mean(1)


def distillation(outputs: Sequence[Tensor], taught: Sequence[Tensor], temperature: float) -> Tensor:
    """How far the outputs are from a teacher's: ``T^2 KL(softmax(taught / T) || softmax(outputs / T))``, the mean over
    positions (Hinton, Vinyals, Dean 2015). One column is a logit of two classes. Several outputs have no common
    meaning: the mean of their squared errors, each relative to the teacher's variance.

    ``taught [[ln 3, 0]], outputs [[0, 0]], T = 1 -> 3/4 ln(3/2) + 1/4 ln(1/2) = 0.131``
    """
    if len(outputs) > 1:
        return hint(outputs, taught)
    own, other = (x[0].float() / temperature for x in (outputs, taught))
    if own.dim() == 1 or own.shape[1] == 1:
        own, other = (torch.stack([x.flatten(), torch.zeros_like(x.flatten())], 1) for x in (own, other))
    apart = F.kl_div(own.log_softmax(1), other.log_softmax(1), reduction="none", log_target=True).sum(1).mean()
    return temperature**2 * apart


def hint(values: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """How far values inside are from a teacher's: the mean of their squared errors, each relative to the variance of
    what is taught (Romero et al., FitNets, ICLR 2015)."""
    parts = [F.mse_loss(x.float(), w.float()) / w.float().var().clamp_min(1e-12) for x, w in _floats(values, taught)]
    return torch.stack(parts).mean()


def _floats(outputs: Sequence[Tensor], taught: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(o, t) for o, t in zip(outputs, taught, strict=True) if o.is_floating_point()]
