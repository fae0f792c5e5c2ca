"""The network of scripts/demo: trained for seconds on the digits that come with scikit-learn.

``demo.py train FILE.pt`` writes its state dict; ``demo.py test FILE.onnx`` says how well an ONNX file does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F


class DigitsNet(nn.Module):
    """Residual convolutions; (N, 1, 8, 8) -> logits (N, 10). The flatten size is written down, as people do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
        self.conv1 = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(128, 64, 3, padding=1), nn.BatchNorm2d(64))
        self.hidden = nn.Linear(64 * 4 * 4, 128)
        self.classes = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.conv2(self.conv1(x)))
        x = x.view(-1, 64 * 4 * 4)
        return self.classes(F.relu(self.hidden(x)))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in 0..1 and labels: for training, for testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return train_images, train_labels, test_images, test_labels


def train(file: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more cost more than they save on a network this small
    images, labels, test_images, test_labels = digits()
    model, epochs = DigitsNet(), 12
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), file)
    with torch.no_grad():
        answers = model.eval()(test_images).argmax(1)
    print(f"trained {epochs} epochs; {accuracy(answers, test_labels)}; wrote {file}")


def test(file: Path) -> None:
    _, _, images, labels = digits()
    session = onnxruntime.InferenceSession(file)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    print(f"{file}: {accuracy(torch.from_numpy(logits).argmax(1), labels)}, without any training after the cut")


def accuracy(answers: Tensor, labels: Tensor) -> str:
    right = int((answers == labels).sum())
    return f"{right} of {len(labels)} test digits right ({right / len(labels):.1%})"


if __name__ == "__main__":
    {"train": train, "test": test}[sys.argv[1]](Path(sys.argv[2]))
