"""How near a file's outputs are to those of the fp32 file, on samples that were held out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from slim_model.calling.boxes import BoxForm, same_boxes
from slim_model.data.accuracy import accuracy
from slim_model.data.batches import Data
from slim_model.errors import InputError
from slim_model.export.check_onnx import run_onnx
from slim_model.quantizing.calibrate import Feed

Outputs = list[np.ndarray]
"""The outputs of real numbers, each over all samples."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """``agreement``: the share of samples with the class of fp32, where outputs score classes; of the boxes that either
    tells, those that both do; else the share of the variance of the outputs that is given. ``snr_db``: of each
    output, 10 log10(|y - mean y|^2 / |y - y'|^2). ``accuracy``: the share of labels that is met, where there are
    labels and classes."""

    agreement: float
    snr_db: tuple[float, ...]
    accuracy: float | None

    @property
    def nearness(self) -> float:
        """What is compared where agreement says little: the signal to noise of the worst output, in dB."""
        return min(self.snr_db)


class Judge:
    """Compares files with the fp32 ``file`` on ``feeds``; its outputs are kept."""

    def __init__(
        self,
        file: Path,
        feeds: Sequence[Feed],
        labels: np.ndarray | None,
        threads: int,
        boxes: BoxForm | None = None,
    ) -> None:
        self.feeds, self.labels, self.threads, self.boxes = feeds, labels, threads, boxes
        self.expected = self._outputs(file)
        if not self.expected:
            raise InputError(f"{file.name} has no output of real numbers to judge int8 by. Use the fp32 file.")
        self.own = self._judge(self.expected)

    def __call__(self, file: Path) -> Judgement:
        return self._judge(self._outputs(file))

    def _judge(self, outputs: Outputs) -> Judgement:
        snr = tuple(map(signal_to_noise_db, self.expected, outputs))
        expected_classes, classes = classes_of(self.expected), classes_of(outputs)
        if expected_classes is None or classes is None:
            alike = self._same_boxes(outputs[0]) if self.boxes else None
            return Judgement(1 - 10 ** (-min(snr) / 10) if alike is None else alike, snr, None)
        labelled = self.labels is not None and len(self.labels) == len(classes)
        right = float((classes == self.labels).mean()) if labelled else None
        return Judgement(float((classes == expected_classes).mean()), snr, right)

    def _same_boxes(self, output: np.ndarray) -> float | None:
        assert self.boxes is not None
        return same_boxes(torch.from_numpy(self.expected[0]), torch.from_numpy(output), self.boxes)

    def _outputs(self, file: Path) -> Outputs:
        model = OnnxFile(file, self.threads)
        runs = [model.session.run(None, feed) for feed in self.feeds]
        return [np.concatenate([np.atleast_1d(x) for x in every])
                for every in zip(*runs, strict=True) if np.issubdtype(every[0].dtype, np.floating)]  # fmt: skip


def signal_to_noise_db(expected: np.ndarray, outputs: np.ndarray) -> float:
    """At most 120 dB, which is equal for float32; -120 where ``outputs`` is of another shape (boxes that were dropped).

    >>> round(signal_to_noise_db(np.array([0.0, 2.0]), np.array([0.0, 1.8])), 2)
    16.99
    """
    if expected.shape != outputs.shape or not np.isfinite(outputs).all():
        return -120.0
    signal = np.square(expected - expected.mean(dtype=np.float64), dtype=np.float64).sum()
    noise = np.square(expected.astype(np.float64) - outputs).sum()
    if noise <= signal * 1e-12:
        return 120.0
    return float(np.clip(10 * math.log10(signal / noise), -120, 120)) if signal else -120.0


def classes_of(outputs: Outputs) -> np.ndarray | None:
    """The winning class of each row of the only output, ``(samples, classes)``; None where it is no such thing."""
    if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[1] < 2:
        return None
    return np.asarray(outputs[0].argmax(1))


class OnnxFile:
    """An ONNX file that takes the batches of ``Data`` and gives tensors; a short batch is filled up with copies where
    the batch of the file is fixed."""

    def __init__(self, file: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        first = self.session.get_inputs()[0].shape[:1]
        self.batch = first[0] if first and isinstance(first[0], int) else None

    def __call__(self, *inputs: Any) -> list[torch.Tensor]:
        filled = tuple(self._filled(inputs))
        return [torch.from_numpy(np.asarray(x)) for x in run_onnx(self.session, filled)]

    def _filled(self, inputs: Sequence[Any]) -> Iterator[Any]:
        for x in inputs:
            if isinstance(x, torch.Tensor) and x.dim() and self.batch is not None and len(x) < self.batch:
                yield torch.cat([x, x[-1:].expand(self.batch - len(x), *x.shape[1:])])
            else:
                yield x


def accuracy_on_test(file: Path, test: Data | None, threads: int) -> float | None:
    """The share of ``test`` that ``file`` gets right; None where there are no labels or no classes."""
    if test is None or not test.labelled:
        return None
    try:
        return round(accuracy(OnnxFile(file, threads), test), 6)
    except InputError:  # the outputs score no classes
        return None
