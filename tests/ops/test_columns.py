"""What the columns of the op table say is what PyTorch's operators do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from micronets import normal
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.ops import OPS, kind_of, linear_form_of, row_of
from slim_model.ops.row import Op

aten = torch.ops.aten


def rows(wanted: Callable[[Op], Any]) -> list[Any]:
    return [target for target, row in OPS.items() if wanted(row)]


def schemas_of(target: Any) -> list[Any]:
    packet = isinstance(target, torch._ops.OpOverloadPacket)
    return [overload._schema for overload in ([getattr(target, n) for n in target.overloads()] if packet else [target])]


# -- curves ---------------------------------------------------------------------------------------------------------

FURTHER: dict[Any, tuple[Any, ...]] = {
    aten.hardtanh: (0.0, 6.0),  # ReLU6; with -1 it is none
    aten.prelu: (torch.tensor(0.2),),
    aten.remainder: (2.0,),
    aten.fmod: (2.0,),
    aten.floor_divide: (2.0,),
}
"""Arguments behind the first, where the defaults do not do."""


def at(target: Any, x: Tensor) -> Tensor:
    return target(x, *FURTHER.get(target, ())).double()


@pytest.mark.parametrize("target", rows(lambda row: row.curve == "rectifier"), ids=str)
def test_a_rectifier_is_zero_for_low_values(target: Any) -> None:
    low, high = at(target, torch.tensor([-50.0, -5.0])), at(target, torch.tensor([0.5, 5.0]))
    assert torch.equal(low, torch.zeros_like(low))
    assert (high > 0).all()


@pytest.mark.parametrize("target", rows(lambda row: row.curve in ("leaky", "saturating")), ids=str)
def test_other_activations_are_small_and_not_zero_for_low_values(target: Any) -> None:
    low, high = at(target, torch.tensor([-1.0])), at(target, torch.tensor([50.0]))
    assert (low < 0).all()
    assert (high > 20 * low.abs()).all()


@pytest.mark.parametrize("target", rows(lambda row: row.curve == "saturating"), ids=str)
def test_a_saturating_one_comes_to_a_constant(target: Any) -> None:
    low = at(target, torch.tensor([-40.0, -50.0]))
    assert torch.allclose(low[0], low[1])
    assert (low < -0.5).all()


@pytest.mark.parametrize("target", rows(lambda row: row.curve == "steps"), ids=str)
def test_steps_jump(target: Any) -> None:
    """Between neighbouring numbers at some place, by a good part of the whole."""
    x = torch.linspace(-3, 3, 6001)
    y = at(target, x)
    assert y.diff().abs().max() > 0.5


def test_relu_is_what_its_kind_says() -> None:
    assert rows(lambda row: row.kind == "relu") == [aten.relu]
    assert row_of(aten.relu_.default) is row_of(aten.relu.default)


# -- effects --------------------------------------------------------------------------------------------------------

REARRANGED: dict[Any, tuple[Any, ...]] = {
    aten.view: ([6, 4],),
    aten._unsafe_view: ([6, 4],),
    aten.reshape: ([6, 4],),
    aten.unflatten: (2, [2, 2]),
    aten.flatten: (),
    aten.ravel: (),
    aten.permute: ([2, 0, 1],),
    aten.transpose: (0, 1),
    aten.movedim: (0, 2),
    aten.swapaxes: (0, 1),
    aten.swapdims: (0, 1),
    aten.squeeze: (1,),
    aten.unsqueeze: (1,),
    aten.channel_shuffle: (3,),
    aten.native_channel_shuffle: (3,),
}
"""Arguments behind the first; none listed: none needed."""


@pytest.mark.parametrize("target", rows(lambda row: row.effect == "rearranges"), ids=str)
def test_what_rearranges_gives_every_value_once(target: Any) -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    if target in (aten.t, aten.numpy_T, aten.adjoint, aten.mT):
        x = x[0]
    elif target in (aten.channel_shuffle, aten.native_channel_shuffle):
        x = x.view(2, 3, 4, 1)
    moved = target(x, *REARRANGED.get(target, ()))
    assert torch.equal(moved.flatten().sort().values, x.flatten())
    assert moved.dtype == x.dtype


@pytest.mark.parametrize("target", rows(lambda row: row.effect == "spatial"), ids=str)
def test_what_is_spatial_leaves_channels_alone(target: Any) -> None:
    """Another channel 1 changes channel 1 and no other."""
    rank = next(n for n in (1, 2, 3) if f"{n}d" in str(target))
    name = str(target).removeprefix("aten.")
    x = torch.randn(2, 3, *[6] * rank, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 1] += torch.randn(other[:, 1].shape, generator=torch.Generator().manual_seed(1))
    further = SPATIAL[next(prefix for prefix in SPATIAL if name.startswith(prefix))](rank)
    one, two = (
        result if isinstance(result, Tensor) else result[0] for result in (target(y, *further) for y in (x, other))
    )
    changed = (one != two).transpose(0, 1).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


SPATIAL: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "max_pool": lambda rank: ([2] * rank,),
    "avg_pool": lambda rank: ([2] * rank,),
    "adaptive": lambda rank: ([2] * rank,),
    "upsample_nearest": lambda rank: ([9] * rank,),
    "_upsample_nearest": lambda rank: ([9] * rank,),
    "upsample": lambda rank: ([9] * rank, False),
    "_upsample": lambda rank: ([9] * rank, False),
    "fractional": lambda rank: ([2] * rank, [3] * rank, torch.full((2, 3, rank), 0.4)),
    "reflection": lambda rank: ([1, 1] * rank,),
    "replication": lambda rank: ([1, 1] * rank,),
}
"""Arguments behind the map, by how the name begins."""


# -- linear forms ---------------------------------------------------------------------------------------------------


class Written(nn.Module):
    """One layer, as ``function(x, weight, bias)`` writes it."""

    def __init__(self, function: Callable[..., Tensor], weight: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(normal(*weight)), nn.Parameter(normal(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def convolution(**options: Any) -> Callable[..., Tensor]:
    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return getattr(F, f"conv{x.dim() - 2}d")(x, weight, bias, **options)

    return layer


def any_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return aten.convolution.default(x, weight, bias, [2, 1], [1, 0], [1, 2], False, [0, 0], 2)


LAYERS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "line": (convolution(stride=2, padding=1), (6, 4, 3), (2, 4, 9)),
    "line, same": (convolution(padding="same", dilation=3), (6, 4, 4), (2, 4, 9)),
    "map": (convolution(stride=(1, 2), padding=(2, 1), dilation=(1, 2)), (6, 4, 3, 2), (2, 4, 9, 8)),
    "map, same and groups": (convolution(padding="same", groups=2), (6, 2, 4, 3), (2, 4, 9, 8)),
    "map, valid": (convolution(padding="valid"), (6, 4, 3, 3), (2, 4, 9, 8)),
    "volume": (convolution(padding=1), (6, 4, 3, 1, 2), (2, 4, 5, 4, 3)),
    "any": (any_convolution, (6, 2, 3, 2), (2, 4, 9, 8)),
    "linear": (F.linear, (6, 4), (2, 5, 4)),
    "matmul": (lambda x, w, b: x @ w + b, (4, 6), (2, 5, 4)),
    "mm": (lambda x, w, b: torch.mm(x, w) + b, (4, 6), (5, 4)),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), (4, 6), (5, 4)),
}
"""The layer, the shape of its weight, and that of what it reads."""


def graph_of(layer: Callable[..., Tensor], weight: tuple[int, ...], x: Tensor) -> Graph:
    return trace(Written(layer, weight, 6), (x,), static_batch=True)


def form_in(graph: Graph) -> tuple[fx.Node, Any]:
    (found,) = [(node, form) for node in graph.nodes if (form := linear_form_of(node)) is not None]
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_linear_form_is_the_layer(name: str) -> None:
    layer, weight, shape = LAYERS[name]
    graph = graph_of(layer, weight, normal(*shape))
    node, form = form_in(graph)
    values = {n.name: graph.tensors[graph.owners[n.name]] for n in graph.nodes if n.name in graph.owners}
    x = graph.inputs[0]
    assert form.operand.name not in values
    stored = values[form.weight.name].detach()
    bias = values[form.bias.name].detach() if form.bias is not None else torch.zeros(6)
    if form.window is None:
        got = x @ (stored if form.turned else stored.T) + bias
    else:
        window = form.window
        plain = getattr(F, f"conv{len(window.kernel)}d")
        got = plain(F.pad(x, window.sides), stored, bias, window.stride, 0, window.dilation, form.groups)
    expected = layer(x, *(graph.tensors[key].detach() for key in ("weight", "bias")))
    added = 0 if form.bias is not None or name not in ("mm", "matmul") else graph.tensors["bias"].detach()
    torch.testing.assert_close(got + added, expected)
    assert kind_of(node) in ("convolution", "linear", "matmul")


def test_what_has_no_linear_form() -> None:
    for layer, weight, shape in (
        (lambda x, w, b: torch.addmm(b, x, w, alpha=2), (4, 6), (5, 4)),
        (lambda x, w, b: F.conv_transpose1d(x, w, b), (4, 6, 3), (2, 4, 9)),
        (lambda x, w, b: F.linear(x, w)[:, None] + b, (4,), (2, 4)),
        (lambda x, w, b: torch.bmm(x, w), (2, 4, 6), (2, 5, 4)),
    ):
        graph = trace(Written(layer, weight, 6), (normal(*shape),), static_batch=True)
        assert not [node for node in graph.nodes if linear_form_of(node) is not None]


# -- training switches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", rows(lambda row: row.training_switch is not None), ids=str)
def test_a_switch_is_an_argument(target: Any) -> None:
    switch = OPS[target].training_switch
    assert switch is not None
    named = [{a.name for a in schema.arguments} for schema in schemas_of(switch.target or target)]
    asked = {switch.argument, *filter(None, (switch.rate, switch.statistics))}
    assert any(asked <= names for names in named)


def test_every_operator_with_such_an_argument_has_a_switch() -> None:
    for target, row in OPS.items():
        if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            named = {a.name for schema in schemas_of(target) for a in schema.arguments}
            without = str(target) == "aten._native_batch_norm_legit.no_stats"  # whose statistics are always its own
            assert row.training_switch is not None or without or not named & {"train", "training", "use_input_stats"}


NORMS = {
    "running": (nn.BatchNorm2d(3), False, False),
    "its own statistics": (nn.BatchNorm2d(3, track_running_stats=False), False, False),
    "instances": (nn.InstanceNorm2d(3), False, False),
    "dropout": (nn.Dropout(0.5), False, False),
    "running, in training": (nn.BatchNorm2d(3), True, True),
    "dropout, in training": (nn.Dropout(0.5), True, True),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_switch_is_on_in_training_alone(name: str) -> None:
    """A norm without running statistics normalises by those of the batch in evaluation, too."""
    model, training, expected = NORMS[name]
    program = torch.export.export(model.train(training), (normal(2, 3, 4, 4),), strict=False)
    switches = [(node, row_of(node.target)) for node in program.graph.nodes if node.op == "call_function"]
    found = [row.training_switch.is_on(node) for node, row in switches if row and row.training_switch]
    assert found == [expected]
