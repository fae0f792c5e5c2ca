"""Train the small nets the benchmarks prune, on the CPU, always alike.

python benchmarks/train.py mnist fashion text

writes build/trained/NAME.pt (state dict) and NAME_module.pt (the module, whose class lies in nets.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datasets
import nets
from evaluate import accuracy

TRAINED = Path(__file__).resolve().parents[1] / "build" / "trained"


def trained(name: str, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """What loads ``build/trained/NAME.pt`` into the net of ``build``, in eval mode."""

    def load() -> nn.Module:
        net = build()
        net.load_state_dict(torch.load(TRAINED / f"{name}.pt", weights_only=True))
        return net.eval()

    return load


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one net is trained: Adam, one cycle of the learning rate up to ``rate``."""

    build: Callable[[], nn.Module]
    load: Callable[[str], datasets.Split]
    loss: Callable[[Tensor, Tensor], Tensor]
    epochs: int
    rate: float
    batch: int = 128
    decay: float = 0.0
    flip: bool = False
    """Mirror half of the pictures of each batch."""


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.float())


_FASHION = Recipe(nets.FashionNet, datasets.fashion_mnist, F.cross_entropy, epochs=8, rate=2e-3, decay=1e-4, flip=True)

RECIPES = {
    "mnist": Recipe(nets.MnistNet, datasets.mnist, F.nll_loss, epochs=2, rate=2e-3),
    "lenet300": Recipe(nets.LeNet300, datasets.mnist, F.cross_entropy, epochs=4, rate=2e-3),
    "lenet300_fashion": Recipe(nets.LeNet300, datasets.fashion_mnist, F.cross_entropy, epochs=6, rate=2e-3, decay=1e-4),
    "fashion": _FASHION,
    "fashion-apart": replace(_FASHION, load=datasets.fashion_mnist_apart),
    "text": Recipe(nets.TextNet, datasets.imdb, binary_loss, epochs=10, rate=3e-3, batch=32, decay=1.0),
}


def train(recipe: Recipe, *, seed: int = 0) -> nn.Module:
    """A freshly trained net in eval mode. The same seed, threads and machine give the same weights."""
    torch.manual_seed(seed)
    net = recipe.build()
    inputs, labels = recipe.load("train")
    steps = -(-len(labels) // recipe.batch)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, recipe.epochs * steps)
    net.train()
    for epoch in range(recipe.epochs):
        started, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(labels)).split(recipe.batch):
            batch = _mirror_half(inputs[rows]) if recipe.flip else inputs[rows]
            loss = recipe.loss(net(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"  epoch {epoch + 1}: loss {total / steps:.4f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return net.eval()


def _mirror_half(images: Tensor) -> Tensor:
    mirrored = torch.rand(len(images)) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def save(net: nn.Module, name: str, folder: Path = TRAINED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / f"{name}.pt")
    torch.save(net, folder / f"{name}_module.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small nets of the benchmarks.")
    parser.add_argument("names", nargs="*", default=["mnist", "fashion", "text"], help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in RECIPES]
    if unknown:
        parser.error(f"no recipe for {', '.join(unknown)}: choose from {', '.join(RECIPES)}.")
    torch.set_num_threads(given.threads)
    for name in given.names:
        print(name, flush=True)
        net = train(RECIPES[name], seed=given.seed)
        save(net, name)
        print(
            f"  test accuracy {accuracy(net, RECIPES[name].load('test')):.4f} -> {TRAINED / name}.pt",
            flush=True,
        )


if __name__ == "__main__":
    main()
