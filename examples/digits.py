"""A network for the digits that come with scikit-learn, trained in seconds: what every example starts from.

``python examples/digits.py FOLDER`` writes there ``digits.pt`` (its state dict), ``digits.npz`` (the images and labels,
for training and for testing), and the images for testing once more as plain bytes for programs that read no NumPy:
``images.f32`` (float32, 64 an image) and ``labels.u8`` (a byte each).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
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


def write_digits(folder: Path) -> tuple[Tensor, ...]:
    """Images (N, 1, 8, 8) in 0..1 and labels: for training, for testing."""
    # Here, so that whoever builds the network to slim it, as the image does, needs no scikit-learn.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    np.savez(folder / "digits.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    x_test.tofile(folder / "images.f32")
    y_test.astype(np.uint8).tofile(folder / "labels.u8")
    return tuple(torch.from_numpy(part) for part in (x_train, y_train, x_test, y_test))


def train(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels, test_images, test_labels = write_digits(folder)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more cost more than they save on a network this small
    model, epochs = DigitsNet(), 12
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), folder / "digits.pt")
    with torch.no_grad():
        right = int((model.eval()(test_images).argmax(1) == test_labels).sum())
    print(f"trained {epochs} epochs: {right} of {len(test_labels)} test digits right; wrote {folder / 'digits.pt'}")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
