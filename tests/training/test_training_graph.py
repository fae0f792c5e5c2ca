"""The training form of a graph does what the module does in train mode: outputs, gradients, running statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from micronets import NETS, normal, randomised
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.simplifying.simplify import simplify
from slim_model.training.training_graph import eval_module, frozen_names, training_module, with_trained_values


class Switches(nn.Module):
    """Everything that is another thing in training."""

    def __init__(self, rate: float = 0.3) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 6, 2, dropout=rate, batch_first=True)
        self.instance = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
        self.batch = nn.BatchNorm1d(6, momentum=0.3)
        self.drops = nn.ModuleList(
            [nn.Dropout(rate), nn.Dropout1d(rate), nn.AlphaDropout(rate), nn.FeatureAlphaDropout(rate), nn.RReLU()]
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(x)[0].transpose(1, 2)
        x = self.batch(self.instance(x))
        for drop in self.drops:
            x = drop(x)
        result: Tensor = self.head(x.mean(2))
        return result


def micronet(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    return NETS[name].build(), NETS[name].inputs(3)


ROWS: dict[str, Any] = {
    "switches": lambda: (randomised(Switches()), (normal(3, 7, 5),)),
    **{
        name: lambda name=name: micronet(name)
        for name in (
            *(
                "conv_bn_relu",
                "mlp_bn",
                "option_a_shortcut",
                "channel_shuffle",
                "reused_norm",
                "batch_norm_of_the_batch",
            ),
            *("instance_norm_running", "lstm_stacked", "gru", "rnn", "rnn_relu", "speech", "pools_and_upsamples"),
        )
    },
}


def tensors(outputs: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


def graph_of(model: nn.Module, inputs: tuple[Any, ...], *, decomposed: bool = False) -> Graph:
    if not decomposed:
        return simplify(trace(model, inputs))
    program = torch.export.export(model.eval(), inputs).run_decompositions()
    return simplify(trace(model, inputs, program=program))


def assert_alike(model: nn.Module, inputs: tuple[Any, ...], graph: Graph, dropout: float = 1.0) -> None:
    theirs, mine = copy.deepcopy(model).train(), training_module(graph, dropout=dropout)
    torch.manual_seed(1)
    expected = tensors(theirs(*copy.deepcopy(inputs)))
    torch.manual_seed(1)
    got = tensors(mine(*copy.deepcopy(inputs)))
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    sum(x.square().sum() for x in expected).backward()  # type: ignore[union-attr]
    sum(x.square().sum() for x in got).backward()  # type: ignore[union-attr]
    slopes = {name: p.grad for name, p in mine.named_parameters() if p.grad is not None}
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert slopes.keys() == wanted.keys()
    for name, slope in wanted.items():
        torch.testing.assert_close(slopes[name], slope, atol=1e-4, rtol=1e-3, msg=name)
    after = with_trained_values(graph, mine)
    for name, buffer in theirs.named_buffers():
        if name in after.tensors and buffer.is_floating_point():
            torch.testing.assert_close(after.tensors[name], buffer, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ROWS)
def test_the_training_form_is_the_modules_own(name: str) -> None:
    model, inputs = ROWS[name]()
    assert_alike(model, inputs, graph_of(model, inputs))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_the_dropout_stays(share: float) -> None:
    model, inputs = ROWS["switches"]()
    thinner = Switches(0.3 * share)
    thinner.load_state_dict(model.state_dict())
    assert_alike(thinner, inputs, graph_of(model, inputs), share)


def test_the_training_form_of_a_decomposed_graph() -> None:
    model, inputs = micronet("conv_bn_relu")
    graph = graph_of(model, inputs, decomposed=True)
    assert any("no_training" in str(node.target) for node in graph.nodes)
    assert_alike(model, inputs, graph)


def test_the_models_own_tensors_are_left_alone() -> None:
    model, inputs = micronet("conv_bn_relu")
    before = copy.deepcopy(model.state_dict())
    graph = graph_of(model, inputs)
    net = training_module(graph)
    net(*inputs)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    changed = with_trained_values(graph, net)
    assert not torch.equal(changed.tensors["bn.running_mean"], before["bn.running_mean"])
    torch.testing.assert_close(changed.run(inputs), tensors(eval_module(changed)(*inputs)))


def test_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.embed(x).mean(1))
            return result

    model, inputs = randomised(Tied()), (torch.arange(6).reshape(2, 3),)
    graph = graph_of(model, inputs)
    net = training_module(graph)
    loss = net(*inputs).square().sum()
    loss.backward()
    torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1).step()
    after = with_trained_values(graph, net).tensors
    assert torch.equal(after["embed.weight"], after["head.weight"])
    model(*inputs).square().sum().backward()
    torch.testing.assert_close(after["embed.weight"], model.embed.weight - 0.1 * model.embed.weight.grad)


def test_frozen_parameters_want_no_gradient() -> None:
    model, inputs = micronet("frozen")
    names = frozen_names(model)
    assert names
    net = training_module(graph_of(model, inputs), frozen=names)
    wanting = {name for name, p in net.named_parameters() if p.requires_grad}
    assert wanting
    assert not wanting & names
    assert frozen_names(model.requires_grad_(False)) == set()
