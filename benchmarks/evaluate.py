"""Accuracy of anything that maps a batch to scores, and the published weights to try it on.

python benchmarks/evaluate.py    prints measured and published accuracy of every trained net at hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import datasets
import nets

Predictor = Callable[[Tensor], "Tensor | np.ndarray"]


def accuracy(predict: Predictor, split: datasets.Split, *, batch: int = 500) -> float:
    """The fraction of ``split`` that ``predict`` gets right, between 0 and 1.

    ``predict`` returns (N, classes), highest wins, or (N, 1) or (N,), where above 0 means class 1. It is
    called as it is: a module must be in eval mode already.
    """
    right = 0
    with torch.inference_mode():
        for inputs, labels in zip(split.inputs.split(batch), split.labels.split(batch), strict=True):
            right += int((classes(torch.as_tensor(predict(inputs))) == labels).sum())
    return right / len(split.labels)


def classes(scores: Tensor) -> Tensor:
    """The winning class of each row: ``[[0.1, 0.9]] -> [1]``, ``[[-3.0]] -> [0]``."""
    if scores.ndim == 1 or scores.shape[1] == 1:
        return (scores.flatten() > 0).long().cpu()
    return scores.argmax(dim=1).cpu()


def onnx_predictor(path: str | Path, *, threads: int = 1) -> Predictor:
    """The first output of an ONNX file in onnxruntime, as a function of its only input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return lambda inputs: session.run(None, {name: inputs.numpy()})[0]


@dataclass(frozen=True, slots=True)
class Published:
    """Weights somebody else trained: the net, where they lie, and what they are known to reach."""

    build: Callable[[], nn.Module]
    weights: str
    test: Callable[[], datasets.Split]
    accuracy: float


def _cifar10_test() -> datasets.Split:
    return datasets.cifar10("test", norm=datasets.IMAGENET_NORM)


PUBLISHED = {
    "resnet20": Published(nets.cifar_resnet20, "weights/resnet-cifar10/resnet20-12fca82f.th", _cifar10_test, 0.9173),
    "resnet56": Published(nets.cifar_resnet56, "weights/resnet-cifar10/resnet56-4bfd9763.th", _cifar10_test, 0.9339),
    "vit_mnist": Published(
        nets.vit_mnist, "weights/vit-mnist/vit_mnist_gpu.pt", lambda: datasets.mnist("test"), 0.9721
    ),
}


def load_published(name: str) -> nn.Module:
    """The net ``name`` of PUBLISHED with its trained weights, in eval mode."""
    row = PUBLISHED[name]
    found: dict[str, Any] = torch.load(datasets.data_file(row.weights), map_location="cpu", weights_only=True)
    state = {key.removeprefix("module."): value for key, value in found.get("state_dict", found).items()}
    net = row.build()
    net.load_state_dict(state)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Print measured and published accuracy.")
    parser.add_argument("names", nargs="*", default=list(PUBLISHED), help=f"of {', '.join(PUBLISHED)}")
    for name in parser.parse_args().names:
        measured = accuracy(load_published(name), PUBLISHED[name].test())
        print(f"{name:10} {measured:.4f}  published {PUBLISHED[name].accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
