"""The share of samples that a model gets right, and the steps after which it is read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from slim_model.data.batches import Data, pad_batch
from slim_model.errors import InputError
from slim_model.graph.graph import Graph

Predictor = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the run after which test accuracy is read: the dense model, the removal of channels, a recovery step,
    fine-tuning. ``accuracy`` is None where the data has no test part, labels or classes; ``did`` is what the step
    changed, in the words of the report. ``latency_ms``: of the ONNX file of the model after it in onnxruntime, median;
    None where none was measured."""

    name: str
    seconds: float = 0.0
    accuracy: float | None = None
    did: dict[str, Any] = field(default_factory=dict)
    latency_ms: float | None = None


def accuracy(model: Graph | Predictor, data: Data) -> float:
    """The share of ``data`` that ``model`` gets right: a graph, or what takes a batch's inputs and gives outputs.

    It is called as it is: a module must be in eval mode. Of several outputs the first that scores classes counts:
    ``(N, classes)``, highest wins, or ``(N, 1)`` or ``(N,)``, where above 0 means class 1. Raises InputError where
    there is none, or no labels.
    """
    right = count = 0
    for batch in data.batches():
        if batch.labels is None:
            raise InputError(f"{data.name} has no labels, so no accuracy can be read from it.")
        if isinstance(model, Graph):
            outputs = model.run(pad_batch(batch, model).inputs)
        else:
            with torch.no_grad():
                outputs = [torch.as_tensor(x) for x in pytree.tree_leaves(model(*batch.inputs))]
        answers = classes(outputs, batch.labels)
        if answers is None:
            raise InputError(
                f"none of the outputs {[tuple(x.shape) for x in outputs]} scores classes for labels of shape "
                f"{tuple(batch.labels.shape)}, so no accuracy can be read."
            )
        right += int((answers[: batch.samples] == batch.labels.flatten().to(answers.device)).sum())
        count += batch.samples
    return right / count


def classes(outputs: list[Tensor], labels: Tensor) -> Tensor | None:
    """The winning class of each row: ``[[0.1, 0.9]] -> [1]``, ``[[-3.0]] -> [0]``; None where no output has any."""
    if labels.numel() != len(labels) or labels.is_floating_point():
        return None
    for scores in outputs:
        if scores.is_floating_point() and scores.dim() in (1, 2) and len(scores) >= len(labels):
            wide = scores.dim() == 2 and scores.shape[1] > 1
            return scores.argmax(1) if wide else (scores.flatten() > 0).long()
    return None


@dataclass(frozen=True, slots=True)
class Exam:
    """Reads accuracy from ``test``; None where the data has no labels, no test part, or the model no classes."""

    test: Data | None

    @classmethod
    def of(cls, graph: Graph, test: Data | None) -> Exam:
        if test is None or not test.labelled:
            return cls(None)
        batch = next(test.batches())
        assert batch.labels is not None
        return cls(test if classes(graph.run(pad_batch(batch, graph).inputs), batch.labels) is not None else None)

    def step(self, name: str, graph: Graph, started: float | None = None, **did: Any) -> Step:
        """What ``graph`` reaches after the step ``name``, which began at ``started`` (``time.perf_counter()``)."""
        seconds = 0.0 if started is None else round(time.perf_counter() - started, 3)
        return Step(name, seconds, None if self.test is None else round(accuracy(graph, self.test), 6), did)
