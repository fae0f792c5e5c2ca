"""Recurrent layers: what is written as ONNX, what the user's own layers become, what they cost, and how they rank."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from micronets import NETS, normal
from micronets.compiled import compile_graph, compiled, coupling_of, graph_of, model_of
from slim_model import cli
from slim_model.api import slim
from slim_model.errors import ExportError
from slim_model.export.check_onnx import check_onnx
from slim_model.export.to_onnx import to_onnx
from slim_model.ops import recurrent
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.pipeline.example_batches import onnx_batches
from slim_model.recipe import Recipe
from small_nets import trained

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
ALL = [name for name, row in NETS.items() if any(isinstance(m, RECURRENT) for m in row.build().modules())]
PACKED = [name for name in ALL if "packed" in name]
HALF = (0.5, 1)
"""Ratio and seed of what the laws over all micro-nets compile too."""


# -- ONNX -----------------------------------------------------------------------------------------------------------


def written(small: Compiled, path: Path) -> Counter[str]:
    to_onnx(small.small, path, opset=None, metadata={})
    assert check_onnx(path, small.small, onnx_batches(small.small, 0)) <= 1e-4
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", [name for name in ALL if name not in PACKED])
def test_one_onnx_node_a_layer(name: str, tmp_path: Path) -> None:
    """Cells, of which the forward says the order, are written step by step."""
    found = compiled(name, *HALF)
    try:
        used = written(found, tmp_path / "small.onnx")
    except ExportError:
        assert torch.__version__ < "2.12"
        pytest.skip("torch 2.11 notes another shape for the last states of an LSTM, and cannot export what reads them")
    calls = [n for n in found.small.nodes if n.op == "call_function" and "input" in str(n.target)]
    layers = sum(n.args[4] for n in calls)
    assert used["LSTM"] + used["GRU"] + used["RNN"] == layers
    assert not used.keys() & {"Loop", "Scan", "SplitToSequence"}


def test_large_weights_are_stored_in_the_order_of_onnx(tmp_path: Path) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(96, 256, bidirectional=True, batch_first=True), nn.Linear(512, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    small = compile_model(trained(Large()), (normal(2, 4, 96),), Recipe.of(multiple_of=1))
    written(small, tmp_path / "small.onnx")
    graph = onnx.load(tmp_path / "small.onnx").graph
    (node,) = [node for node in graph.node if node.op_type == "LSTM"]
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert [stored.get(name) for name in node.input[1:4]] == [(2, 512, 96), (2, 512, 128), (2, 1024)]
    assert sum(4 * 512 * size for size in (96, 128, 2)) <= (tmp_path / "small.onnx").stat().st_size < 2.1e6


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((x.shape[0],), 6)
        return self.head(self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1][0][0])


@pytest.mark.parametrize("saves", [True, False])
def test_what_onnx_cannot_hold_is_refused_and_saved(
    saves: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target, small = tmp_path / "in.pt", tmp_path / "out.onnx", tmp_path / "small.safetensors"
    torch.save(trained(Packed()).state_dict(), source)
    options = ["--arch", f"{__file__}:Packed", "--input", "2x6x5", "--no-bench", "--multiple-of", "1"]
    code = cli.run([str(source), str(target), *options, *(["--save", str(small)] if saves else [])])
    said = capsys.readouterr().err
    assert code == 5
    assert ("does not write it: " if saves else "cannot write aten._pack_padded_sequence.default") in said
    assert not target.exists()
    assert small.exists() == saves
    assert (f"is in {small}" if saves else "--save small.safetensors") in said


# -- the user's own layers ------------------------------------------------------------------------------------------

LAYERS = [
    nn.LSTM(8, 12, 2, bidirectional=True, batch_first=True),
    nn.LSTM(8, 12, proj_size=8, batch_first=True),
    nn.GRU(8, 12, bias=False, batch_first=True),
    nn.RNN(8, 12, nonlinearity="relu", batch_first=True),
]


class Tagger(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 8)
        self.rnn = rnn
        self.head = nn.Linear((rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.relu(self.embed(x)))[0])


@pytest.mark.parametrize("rnn", LAYERS, ids=repr)
def test_the_layer_is_a_smaller_one_of_its_kind(rnn: nn.RNNBase) -> None:
    model = trained(Tagger(rnn))
    small = slim(model, normal(2, 6, 7), ratio=0.5, multiple_of=1).module
    assert type(small) is Tagger
    assert type(small.rnn) is type(rnn)
    sizes = small.rnn.input_size, small.rnn.hidden_size, small.rnn.proj_size
    assert sizes == (4, 6, rnn.proj_size // 2)
    fresh = Tagger(type(rnn)(*sizes[:2], **_options(rnn) | ({"proj_size": sizes[2]} if sizes[2] else {})))
    assert {k: v.shape for k, v in fresh.rnn.state_dict().items()} == {
        k: v.shape for k, v in small.rnn.state_dict().items()
    }
    small.train()(normal(2, 6, 7)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_half_of_a_narrow_layer_stays_whatever_its_kind(kind: type[nn.RNNBase]) -> None:
    """No fewer than 8 units of a GRU have rows that are a multiple of 8; of the steps below, 1 was left."""
    small = slim(trained(Tagger(kind(8, 8, batch_first=True))), normal(2, 6, 7), ratio=0.5, multiple_of=8).module
    assert small.rnn.hidden_size == 4


@pytest.mark.parametrize("both_ways", [False, True])
def test_units_are_more_than_what_they_are_projected_to(both_ways: bool) -> None:
    """PyTorch tells by the two widths that there is a projection: 8 of 16 and 8 of 12 would be none."""
    rnn = nn.LSTM(8, 16, proj_size=12, batch_first=True, bidirectional=both_ways)
    small = slim(trained(Tagger(rnn)), normal(2, 6, 7), ratio=0.5, multiple_of=8).module
    assert (small.rnn.hidden_size, small.rnn.proj_size) == (9, 8)


def _options(rnn: nn.RNNBase) -> dict[str, object]:
    options = {n: getattr(rnn, n) for n in ("num_layers", "bias", "batch_first", "bidirectional")}
    return options | ({"nonlinearity": "relu"} if rnn.mode == "RNN_RELU" else {})


def test_a_cell_is_a_smaller_one() -> None:
    model = NETS["lstm_cell"].build()
    small = slim(model, NETS["lstm_cell"].inputs(2), ratio=0.5, multiple_of=1, criterion="l2")
    assert not small.report.pinned or all(pin["is_output"] for pin in small.report.pinned)
    widths = {group["name"]: (group["before"], group["after"]) for group in small.report.groups}
    assert widths == {"embed": (8, 4), "cell": (12, 6)}


# -- cost and rank --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        # steps x (gates x units x (inputs + units)), and the linear layers around
        ("lstm", 3 * 5 * 8 + 3 * 4 * 12 * (8 + 12) + 12 * 5),
        ("lstm_both_ways", 3 * 2 * 4 * 8 * ((5 + 8) + (16 + 8)) + 3 * (16 * 12 + 12 * 5)),
        ("lstm_projected", 3 * (4 * 12 * (5 + 8) + 12 * 8) + 3 * (8 * 12 + 12 * 5)),
        ("gru_both_ways", 3 * 2 * 3 * 8 * ((5 + 8) + (16 + 8)) + 16 * 5),
        ("rnn", 3 * 5 * 8 + 3 * 12 * ((8 + 12) + (12 + 12)) + 3 * 12 * 5),
        ("lstm_cell", 3 * 5 * 8 + 2 * 4 * 12 * (8 + 12) + 12 * 5),
    ],
)
def test_multiply_adds_by_hand(name: str, macs: int) -> None:
    assert compiled(name, *HALF).dense_cost.macs == macs


def test_multiply_adds_of_the_small_one_by_hand() -> None:
    assert compiled("lstm", *HALF).slim_cost.macs == 3 * 5 * 4 + 3 * 4 * 6 * (4 + 6) + 6 * 5


def test_units_are_the_same_in_all_gates_layers_and_directions() -> None:
    coupling = coupling_of("lstm_both_ways")
    group = next(group for group in coupling.groups if group.name == "rnn")
    assert (group.width, group.span) == (8, 4)
    rows = {(s.parameter, s.axis) for s in group.slices}
    for layer in ("l0", "l0_reverse", "l1", "l1_reverse"):
        assert {(f"rnn.weight_hh_{layer}", 0), (f"rnn.weight_hh_{layer}", 1), (f"rnn.bias_ih_{layer}", 0)} <= rows
    assert ("rnn.weight_ih_l1_reverse", 1) in rows


@pytest.mark.parametrize("name", ["lstm", "lstm_both_ways", "gru_from_a_computed_state", "lstm_cell"])
@pytest.mark.parametrize("criterion", ["l1", "variance", "correlation", "thinet", "taylor", "reconstruction"])
def test_criteria_rank_units(name: str, criterion: str) -> None:
    data = NETS[name].inputs(8)[0], torch.arange(8) % 5
    recipe = Recipe.of(criterion=criterion, multiple_of=1, data=data, batch=4)
    result = compile_graph(model_of(name), graph_of(name), recipe)
    assert all(after == before // 2 for before, after in result.plan.widths)


def test_the_input_weight_has_a_row_for_each_gate_and_direction() -> None:
    rnn = nn.LSTM(5, 8, 2, bidirectional=True)
    params = [getattr(rnn, name) for name in rnn._flat_weights_names]
    weight = recurrent.input_weight(params=params, num_layers=2, bidirectional=True)
    assert torch.equal(weight, torch.cat([rnn.weight_ih_l0, rnn.weight_ih_l0_reverse]))
