"""A layer ranks the channels it reads the same, however it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim_model.coupling.couple import couple
from slim_model.data.open_data import open_data
from slim_model.graph.trace import trace
from slim_model.ranking.score import score
from slim_model.simplifying.simplify import simplify

aten = torch.ops.aten

LINEAR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "addmm": lambda x, w, b: torch.addmm(b, x, w.T),
    "mm": lambda x, w, b: torch.mm(x, w.T) + b,
    "matmul": lambda x, w, b: x @ w.T + b,
}
CONVOLUTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "convolution": lambda x, w, b: aten.convolution.default(x, w, b, [2, 2], [1, 1], [1, 1], False, [0, 0], 1)
}


class Read(nn.Module):
    """Channels that ``reader`` reads."""

    def __init__(self, maker: nn.Module, reader: nn.Module, written: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.maker, self.reader, self.written = maker, reader, written

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.maker(x))
        return self.reader(x) if self.written is None else self.written(x, self.reader.weight, self.reader.bias)


def scores(net: nn.Module, x: Tensor, criterion: str) -> list[Tensor]:
    coupling = couple(simplify(trace(net.eval(), (x[:2],))))
    return score(coupling, criterion, data=open_data([x], coupling.graph.inputs))


@pytest.mark.parametrize("criterion", ["correlation", "reconstruction", "thinet"])
@pytest.mark.parametrize(
    ("maker", "reader", "shape", "written"),
    [
        *((nn.Linear(6, 9), nn.Linear(9, 5), (30, 6), written) for written in LINEAR.values()),
        *((nn.Conv2d(3, 7, 3), nn.Conv2d(7, 4, 3, 2, 1), (12, 3, 9, 9), written) for written in CONVOLUTION.values()),
    ],
    ids=[*LINEAR, *CONVOLUTION],
)
def test_a_layer_written_in_another_way(
    maker: nn.Module, reader: nn.Module, shape: tuple[int, ...], written: Any, criterion: str
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain, other = (scores(Read(maker, reader, function), x, criterion) for function in (None, written))
    for one, two in zip(plain, other, strict=True):
        torch.testing.assert_close(one, two)
