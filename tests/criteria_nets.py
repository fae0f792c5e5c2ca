"""What tests of criteria share: a net of two groups, its samples, and scores of it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_model import CRITERIA
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.data.open_data import open_data
from slim_model.graph.trace import trace
from slim_model.ranking.criteria import Ranking, ranking_of
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify

SAMPLES = 23
BY_INDEX = {"random", "random-mask"}  # draw by the number of a channel, so renaming channels changes them
GREEDY = {"thinet", "reconstruction", "kernel"}  # the second of two twins is not as cheap as the first
WITH_DATA = [name for name, row in CRITERIA.items() if row.needs != "weights"]


class Net(nn.Module):
    """Two groups: conv1 (6 channels, read by conv2) and conv2 (4 channels, read flattened)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4 * 9, 3)
        for tensor in (self.bn.weight, self.bn.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(self.bn.bias, 0, 0.5)
        nn.init.uniform_(self.conv2.bias, 0.5, 1.5)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(self.hidden(x))).flatten(1))


@functools.cache
def net() -> Net:
    return Net().double().eval()


@functools.cache
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (SAMPLES,), generator=generator)


def coupled(model: nn.Module) -> Coupling:
    return couple(simplify(trace(model, (samples()[0][:2],))))


@functools.cache
def scores_of(name: str) -> list[Tensor]:
    return raw(net(), name)


def raw(model: nn.Module, criterion: Any, batches: Any = None) -> list[Tensor]:
    """Scores as the criterion gives them, ties and all."""
    coupling, ranking = coupled(model), ranking_of(criterion)
    source = [samples()] if batches is None else batches
    data = open_data(source, coupling.graph.inputs, samples=SAMPLES, batch=SAMPLES)
    found: list[Tensor] = []
    keeping = Ranking(lambda s: found.append(ranking(s)) or found[-1], ranking.needs, ranking.statistics, ranking.tries)
    score(coupling, keeping, data=data)
    return [x.detach().double() for x in found]


def reads(group: int) -> np.ndarray:
    """What the next layer takes in: (sample, channel, height, width)."""
    with torch.no_grad():
        x = net().hidden(samples()[0])
        return (x if group == 0 else F.relu(net().conv2(x))).numpy()


def renamed(order: list[int]) -> Net:
    model = copy.deepcopy(net())
    with torch.no_grad():
        for owner in (model.conv1, model.bn):
            for tensor in (*owner.parameters(), *owner.buffers()):
                if tensor.dim():
                    tensor.copy_(tensor[order].clone())
        model.conv2.weight.copy_(model.conv2.weight[:, order].clone())
    return model


@functools.cache
def odd_net() -> Net:
    """Channels 0 and 1 are twins, 2 is dead, 3 holds a constant, 4 is positive everywhere."""
    model = renamed([0, 0, 2, 3, 4, 5])
    with torch.no_grad():
        model.bn.weight[2:4], model.bn.bias[2], model.bn.bias[3] = 0, -1, 2
        model.bn.bias[4] = 100
    return model
