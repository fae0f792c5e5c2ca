"""A model becomes one flat ATen graph: its operators, its tensors by name, a free batch, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_model.errors import InputError
from slim_model.graph.graph import Graph, module_path, source_line
from slim_model.graph.trace import trace


class Net(nn.Module):
    """(N, 3) -> (N, 2): a linear layer, a norm, a buffer, a ReLU and another linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x)) * self.scale))


def operators(graph: Graph) -> list[str]:
    return [str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def same(graph: Graph, model: nn.Module, *inputs: Any) -> None:
    (got,) = graph.run(inputs)
    with torch.no_grad():
        torch.testing.assert_close(got, model.eval()(*inputs))


# -- what a graph holds ---------------------------------------------------------------------------------------------


def test_layers_are_whole_operators_in_the_order_of_the_forward() -> None:
    assert operators(trace(Net(), (numbers(2, 3),))) == ["linear", "batch_norm", "mul", "relu", "linear"]


def test_tensors_go_by_the_names_that_the_user_knows() -> None:
    net = Net()
    graph = trace(net, (numbers(2, 3),))
    stored = dict(net.named_parameters()) | dict(net.named_buffers())
    used = {name for name in stored if name != "norm.num_batches_tracked"}
    assert used <= set(graph.tensors) <= set(stored)
    assert all(tensor.data_ptr() == stored[name].data_ptr() for name, tensor in graph.tensors.items())
    assert graph.parameter_names == {name for name, _ in net.named_parameters()}
    assert set(graph.owners.values()) == set(graph.tensors)


def test_a_node_knows_its_module_and_the_users_line() -> None:
    graph = trace(Net(), (numbers(2, 3),))
    relu = next(node for node in graph.nodes if "relu" in str(node.target))
    line = "in forward: return self.b(F.relu(self.norm(self.a(x)) * self.scale))"
    assert source_line(relu).startswith("test_trace.py:")
    assert source_line(relu).endswith(line)
    linear = [node for node in graph.nodes if "linear" in str(node.target)]
    assert [module_path(node) for node in [*linear, relu]] == ["a", "b", ""]


def test_regions_without_gradient_are_in_line() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = F.relu(self.a(x))
            return self.b(x)

    graph = trace(net := Frozen(), (numbers(2, 3),))
    assert [o for o in operators(graph) if o != "detach"] == ["linear", "relu", "linear"]
    same(graph, net, numbers(5, 3))


def test_inputs_may_be_nested_and_outputs_may_be_many() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, given: dict[str, Tensor], more: list[Tensor]) -> dict[str, Any]:
            return {"sum": self.a(given["x"]) + more[0], "all": [given["x"], more[0].shape[0]]}

    x, y = numbers(2, 3), numbers(2, 2)
    graph = trace(net := Nested(), ({"x": x}, [y]))
    assert [tuple(given.shape) for given in graph.inputs] == [(2, 3), (2, 2)]
    assert graph.arguments.filled(graph.inputs).args[0]["x"] is graph.inputs[0]
    assert graph.input_names == ("given.x", "more.0")
    assert graph.outputs.names == ("sum", "all.0", "all.1")
    summed, given, number = graph.run((x, y))
    assert int(number) == 2
    torch.testing.assert_close(summed, net.a(x) + y)
    assert torch.equal(given, x)


# -- the user's model -----------------------------------------------------------------------------------------------


def test_the_model_is_traced_as_it_predicts_and_keeps_its_modes_and_values() -> None:
    net = Net().train()
    net.b.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    graph = trace(net, (numbers(2, 3),))
    assert [net.training, net.a.training, net.norm.training, net.b.training] == [True, True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    (norm,) = [node for node in graph.nodes if "batch_norm" in str(node.target)]
    assert norm.args[5] is False  # it takes the running statistics


def test_an_input_that_the_forward_writes_to_is_left_alone() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    x = numbers(2, 3)
    before = x.clone()
    graph = trace(Writes(), (x,))
    graph.run((x,))
    assert torch.equal(x, before)


# -- the batch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_is_free(batch: int) -> None:
    """One sample is doubled: torch.export takes a size of 1 for a number."""
    graph = trace(net := Net(), (numbers(batch, 3),))
    assert graph.dynamic_batch
    assert graph.warnings == ()
    assert graph.inputs[0].shape[0] == 2
    for size in (1, 2, 7):
        same(graph, net, numbers(size, 3))


def test_the_batch_is_fixed_where_it_is_asked_for() -> None:
    graph = trace(net := Net(), (numbers(3, 3),), static_batch=True)
    assert not graph.dynamic_batch
    assert "--static-batch" in graph.warnings[0]
    same(graph, net, numbers(3, 3))


def test_inputs_without_a_common_batch_keep_their_sizes() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y.sum()

    graph = trace(net := Two(), (numbers(3, 2), numbers(4)))
    assert not graph.dynamic_batch
    assert "the first axes of its inputs differ in size" in graph.warnings[0]
    same(graph, net, numbers(3, 2), numbers(4))


def test_several_inputs_share_the_batch_and_numbers_have_none() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, y: Tensor, by: Tensor) -> Tensor:
            return x * by + y

    graph = trace(net := Scaled(), (numbers(2, 3), numbers(2, 3), torch.tensor(0.5)))
    assert graph.dynamic_batch
    same(graph, net, numbers(5, 3), numbers(5, 3), torch.tensor(2.0))


# -- other ways in --------------------------------------------------------------------------------------------------


class Decides(nn.Module):
    """A branch on values, which torch.export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x)) if x.sum() > -1e6 else self.a(x)


def test_a_model_that_cannot_be_exported_is_followed_through_one_run() -> None:
    graph = trace(net := Decides(), (numbers(4, 3),))
    assert graph.program is None
    assert not graph.dynamic_batch
    assert "traced from one run of the example" in graph.warnings[0]
    assert {"relu", "linear"} <= set(operators(graph))
    assert set(graph.tensors) == {"a.weight", "a.bias"}
    same(graph, net, numbers(4, 3))


def test_an_exported_program_is_taken_as_it_is_and_not_changed() -> None:
    net = Net().eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(net, (numbers(2, 3),), dynamic_shapes=shapes)
    before = str(program.graph)
    graph = trace(net, (numbers(2, 3),), program=program)
    assert graph.dynamic_batch
    assert graph.program is program
    assert operators(graph) == ["linear", "batch_norm", "mul", "relu", "linear"]
    graph.module.graph.erase_node(next(reversed(graph.module.graph.nodes)))
    assert str(program.graph) == before


def test_torchscript_is_converted() -> None:
    net = Net().eval()
    graph = trace(torch.jit.script(net), (numbers(2, 3),))
    assert {"a.weight", "b.bias"} <= set(graph.tensors)
    same(graph, net, numbers(2, 3))


def test_what_does_not_run_is_refused_with_the_inputs_it_was_given() -> None:
    with pytest.raises(InputError) as raised:
        trace(Net(), (numbers(2, 5),))
    message = str(raised.value)
    assert "could not be traced with inputs 2x5:float32" in message
    assert "Check that the model runs on them" in message
    assert "\n" not in message
