"""The user's own module with smaller layers: sizes that layers remember follow, and everything else stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim_model.cutting.shrink_module import shrink_module

LAYERS: dict[str, tuple[nn.Module, dict[str, tuple[int, ...]], dict[str, Any], tuple[int, ...]]] = {
    "linear": (
        nn.Linear(6, 8),
        {"weight": (5, 4), "bias": (5,)},
        {"out_features": 5, "in_features": 4},
        (2, 4),
    ),
    "conv": (
        nn.Conv2d(6, 8, 3),
        {"weight": (5, 4, 3, 3), "bias": (5,)},
        {"out_channels": 5, "in_channels": 4, "groups": 1},
        (2, 4, 5, 5),
    ),
    "depthwise": (  # 8 groups of one channel: 3 groups went
        nn.Conv2d(8, 8, 3, groups=8),
        {"weight": (5, 1, 3, 3), "bias": (5,)},
        {"out_channels": 5, "in_channels": 5, "groups": 5},
        (2, 5, 5, 5),
    ),
    "grouped, whole groups went": (  # 4 groups that read 2 and make 3: 3 groups are left
        nn.Conv2d(8, 12, 1, groups=4),
        {"weight": (9, 2, 1, 1), "bias": (9,)},
        {"out_channels": 9, "in_channels": 6, "groups": 3},
        (2, 6, 2, 2),
    ),
    "grouped, places within went": (  # 2 groups that read 4 and make 6 -> read 3 and make 6
        nn.Conv2d(8, 12, 1, groups=2),
        {"weight": (12, 3, 1, 1), "bias": (12,)},
        {"out_channels": 12, "in_channels": 6, "groups": 2},
        (2, 6, 2, 2),
    ),
    "transposed": (
        nn.ConvTranspose2d(6, 8, 2),
        {"weight": (4, 5, 2, 2), "bias": (5,)},
        {"in_channels": 4, "out_channels": 5, "groups": 1},
        (2, 4, 3, 3),
    ),
    "transposed, whole groups went": (  # 4 groups that read 2 and make 3: 3 groups are left
        nn.ConvTranspose2d(8, 12, 2, groups=4),
        {"weight": (6, 3, 2, 2), "bias": (9,)},
        {"in_channels": 6, "out_channels": 9, "groups": 3},
        (2, 6, 3, 3),
    ),
    "batch norm": (
        nn.BatchNorm2d(8),
        {"weight": (5,), "bias": (5,), "running_mean": (5,), "running_var": (5,)},
        {"num_features": 5},
        (2, 5, 3, 3),
    ),
    "group norm, whole groups went": (  # 4 groups of 2
        nn.GroupNorm(4, 8),
        {"weight": (6,), "bias": (6,)},
        {"num_groups": 3, "num_channels": 6},
        (2, 6, 3),
    ),
    "group norm, places within went": (  # 2 groups of 4 -> of 3
        nn.GroupNorm(2, 8),
        {"weight": (6,), "bias": (6,)},
        {"num_groups": 2, "num_channels": 6},
        (2, 6, 3),
    ),
    "layer norm": (nn.LayerNorm(8), {"weight": (5,), "bias": (5,)}, {"normalized_shape": (5,)}, (2, 5)),
    "rms norm": (nn.RMSNorm(8), {"weight": (5,)}, {"normalized_shape": (5,)}, (2, 5)),
    "LSTM": (  # 4 gates of 5
        nn.LSTM(6, 8, batch_first=True),
        {"weight_ih_l0": (20, 4), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,)},
        {"input_size": 4, "hidden_size": 5, "proj_size": 0},
        (2, 3, 4),
    ),
    "projected LSTM": (  # 4 gates of 5, projected to 3
        nn.LSTM(6, 8, proj_size=4, batch_first=True),
        {
            **{"weight_ih_l0": (20, 4), "weight_hh_l0": (20, 3), "weight_hr_l0": (3, 5)},
            **{"bias_ih_l0": (20,), "bias_hh_l0": (20,)},
        },
        {"input_size": 4, "hidden_size": 5, "proj_size": 3},
        (2, 3, 4),
    ),
    "GRU": (  # 3 gates of 5
        nn.GRU(6, 8, batch_first=True),
        {"weight_ih_l0": (15, 4), "weight_hh_l0": (15, 5), "bias_ih_l0": (15,), "bias_hh_l0": (15,)},
        {"input_size": 4, "hidden_size": 5},
        (2, 3, 4),
    ),
    "RNN cell": (
        nn.RNNCell(6, 8),
        {"weight_ih": (5, 4), "weight_hh": (5, 5), "bias_ih": (5,), "bias_hh": (5,)},
        {"input_size": 4, "hidden_size": 5},
        (2, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_remembers_its_new_sizes_and_runs(name: str) -> None:
    layer, shapes, sizes, given = LAYERS[name]
    before = {key: tuple(tensor.shape) for key, tensor in layer.state_dict().items()}
    small = shrink_module(layer.eval(), {key: torch.rand(shape) for key, shape in shapes.items()})
    assert type(small) is type(layer)
    assert {size: getattr(small, size) for size in sizes} == sizes
    result = small(torch.rand(given))
    assert all(x.isfinite().all() for x in (result if isinstance(result, tuple) else [result]) if isinstance(x, Tensor))
    assert {key: tuple(tensor.shape) for key, tensor in layer.state_dict().items()} == before


def test_an_embedding_remembers_its_new_sizes() -> None:
    small: Any = shrink_module(nn.Embedding(9, 8), {"weight": torch.rand(9, 5)})
    assert (small.num_embeddings, small.embedding_dim) == (9, 5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)
        self.b.weight.requires_grad_(False)
        self.register_buffer("scale", torch.ones(4))
        self.note = {"made by": "hand"}

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * self.scale


def test_tensors_that_are_not_given_are_copied() -> None:
    net = Net()
    small = shrink_module(net, {"a.weight": torch.zeros(2, 3)})
    assert torch.equal(small.b.weight, net.b.weight)  # type: ignore[union-attr, arg-type]
    assert small.b.weight.data_ptr() != net.b.weight.data_ptr()  # type: ignore[union-attr, operator]
    small.note["made by"] = "machine"  # type: ignore[index, operator]
    assert net.note == {"made by": "hand"}


def test_what_is_trained_and_what_is_not_stays_so() -> None:
    small = shrink_module(Net(), {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(4, 2), "scale": torch.ones(4)})
    assert [name for name, parameter in small.named_parameters() if parameter.requires_grad] == [
        "a.weight",
        "a.bias",
        "b.bias",
    ]
    assert [name for name, _ in small.named_buffers()] == ["scale"]


def test_a_weight_under_two_names_stays_one_whichever_name_is_given() -> None:
    net = Net()
    net.a = nn.Linear(4, 4)
    net.a.weight = net.b.weight
    for name in ("a.weight", "b.weight"):
        small: Any = shrink_module(net, {name: torch.zeros(2, 4)})
        assert small.a.weight is small.b.weight
        assert small.a.out_features == small.b.out_features == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_inside_holds_what_is_given() -> None:
    """It copies its tensors itself: a model built anew would keep its own, whatever was saved."""
    x = torch.randn(2, 4)
    script = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), x)
    net = nn.Sequential(script, nn.Linear(4, 2)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given = {name: torch.rand_like(tensor, dtype=torch.float32).to(tensor.dtype) for name, tensor in before.items()}
    small = shrink_module(net, given)
    assert all(torch.equal(tensor, given[name]) for name, tensor in small.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
