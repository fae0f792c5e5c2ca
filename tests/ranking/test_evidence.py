"""Evidence: what is observed, where, and that it does not depend on how samples arrive."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import micronets
from micronets import NETS
from micronets.compiled import coupling_of
from slim_model import InputError
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.data.open_data import open_data
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.progress import count_in_text
from slim_model.ranking.evidence.gather import Evidence, gather
from slim_model.ranking.evidence.histogram import CELLS, Histogram
from slim_model.ranking.evidence.read_sites import Layout, by_sample, find_read_sites
from slim_model.ranking.evidence.sampling import sample_positions
from slim_model.ranking.evidence.seen import Seen
from slim_model.ranking.evidence.statistics import (
    STATISTICS,
    ChannelMoments,
    Classes,
    Covariance,
    Zeros,
    merge_statistics,
)
from slim_model.simplifying.simplify import simplify

SOME = [
    *("conv_bn_relu", "mlp", "windows", "multihead_attention", "stacked_experts", "cat_batch", "channel_shuffle"),
    *("grouped_few", "depthwise_multiplier", "pixel_unshuffle", "rotary", "group_norm_between", "conv3d_flatten"),
    *("lstm_stacked", "lstm_from_a_learned_state", "gru_from_a_computed_state", "rnn_cells", "speech"),
]


def coupled(model: nn.Module, *inputs: Tensor) -> Coupling:
    return couple(simplify(trace(model.eval(), inputs)))


def seen(values: Tensor, labels: Tensor | None = None, first: int = 0) -> Seen:
    return Seen(values, (1, values.shape[2]), None, labels, first, tuple)


# -- places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SOME if n in NETS])
def test_every_channel_is_read_somewhere(name: str) -> None:
    coupling = coupling_of(name)
    found = find_read_sites(coupling)
    for number, group in enumerate(coupling.groups):
        channels = {int(c) for place in found if place.group == number for c in place.channel}
        assert channels == set(range(group.width)), group.name


@pytest.mark.parametrize("name", [n for n in SOME if n in NETS])
def test_samples_are_told_apart_wherever_they_lie(name: str) -> None:
    """What is seen of a sample in a batch is what is seen of it alone among others."""
    coupling, graph = coupling_of(name), coupling_of(name).graph
    inputs = tuple(x for x in NETS[name].inputs(4) if isinstance(x, Tensor))
    data = [open_data([tuple(x[rows] for x in inputs)], graph.inputs) for rows in (slice(0, 4), slice(1, 3))]
    whole, part = (_values(coupling, next(d.batches()).inputs) for d in data)
    for a, b in zip(whole, part, strict=True):
        assert torch.allclose(a[1:3], b, atol=1e-5)


def _values(coupling: Coupling, inputs: tuple[Any, ...]) -> list[Tensor]:
    found = []
    for place in find_read_sites(coupling):
        values: dict[Any, Any] = {}

        class Keep(torch.fx.Interpreter):
            def run_node(self, n: Any) -> Any:
                values[n] = super().run_node(n)  # noqa: B023
                return values[n]  # noqa: B023

        with torch.no_grad():
            Keep(coupling.graph.module).run(initial_env=coupling.graph.bind(inputs))
        found.append(by_sample(values[place.seen.node], place.seen, len(inputs[0])).flatten(2))
    return found


@pytest.mark.parametrize("name", [n for n in SOME if n in NETS])
def test_every_statistic_can_be_had(name: str) -> None:
    coupling, inputs = coupling_of(name), NETS[name].inputs(4)
    names = tuple(n for n in STATISTICS if n != "classes")
    data = open_data([inputs], coupling.graph.inputs)
    found = gather(coupling, data, names)
    graded = gather(coupling, data, ("gates", "curvature"), loss=lambda out, _: out.square().mean())
    for number, group in enumerate(coupling.groups):
        for view in found.groups[number].views:
            assert view.statistics["moments"].mean.shape == view.channel.shape
            assert all(bool(torch.isfinite(view.statistics[n].gram).all()) for n in names if n == "contributions")
        gates = graded.groups[number].gates
        assert gates is None or (gates.count, gates.squared.shape) == (4, (group.width,))


def test_a_depthwise_layer_and_a_norm_hand_on() -> None:
    """The channel is observed where it is summed: behind the depthwise convolution, behind the norm."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    (place,) = find_read_sites(coupled(model, torch.randn(2, 3, 6, 6)))
    assert [str(n) for n in (place.seen.node, *place.readers)] == ["relu", "conv2d_2"]
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    (place,) = find_read_sites(coupled(model, torch.randn(2, 3)))
    assert str(place.seen.node) == "layer_norm"


def test_a_layer_in_a_residual_branch_reads_the_stream_it_adds_to() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.head(x + self.branch(x))

    model = Residual()
    found = find_read_sites(coupled(model, torch.randn(2, 3)))
    assert [str(p.readers[0]) for p in found] == ["linear_1", "linear_2"]
    assert torch.equal(found[0].weights[0], model.branch.weight.detach().T)


def test_a_flattened_map_is_seen_as_a_map() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 2))
    (place,) = find_read_sites(coupled(model, torch.randn(2, 1, 8, 8)))
    assert place.read.index.shape == (4, 9)
    assert place.seen.index.shape == (4, 1)
    assert str(place.seen.node) == "max_pool2d"
    assert place.weights[0].shape == (4, 2 * 9)


def test_batches_in_the_middle_are_found() -> None:
    class Second(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x.transpose(0, 1)))).mean(0)

    (place,) = find_read_sites(coupled(Second(), torch.randn(2, 7, 3)))
    assert place.seen.layout == Layout(1)


def test_samples_that_mix_are_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x - x.mean(0))))

    with pytest.raises(InputError, match=r"samples of a batch mix before test_evidence.py"):
        find_read_sites(coupled(Mixing(), torch.randn(2, 3)))


def test_channels_that_no_data_reaches_are_named() -> None:
    class Table(nn.Module):
        """A network of constants computes what is added, as the position biases of Swin v2."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, None] + self.b(F.relu(self.a(self.table)))

    coupling = coupled(Table(), torch.randn(2, 3))
    data = open_data(torch.randn(30, 3), coupling.graph.inputs)
    with pytest.raises(InputError, match=r"no data flows.*--keep"):
        gather(coupling, data, ("zeros",))


# -- one pass -------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@functools.cache
def small() -> tuple[Coupling, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 1, 8, 8, generator=generator, dtype=torch.float64)
    coupling = coupled(Small().double(), x[:2])
    return coupling, x, torch.randint(0, 3, (30,), generator=generator)


def test_all_statistics_come_from_one_pass() -> None:
    coupling, x, y = small()
    passes = []

    class Counting:
        def __iter__(self) -> Any:
            passes.append(1)
            return iter([(x, y)])

    data = open_data(Counting(), coupling.graph.inputs)
    passes.clear()
    found = gather(coupling, data, (*STATISTICS, "gates", "curvature"))
    assert len(passes) == 1
    assert found.samples == 30
    for group in found.groups:
        assert set(group.views[0].statistics) == set(STATISTICS)


def test_parts_of_the_data_merge_to_the_whole() -> None:
    """Two machines: each gathers its part, and numbers its samples as in the whole."""
    coupling, x, y = small()
    names = ("moments", "zeros", "histogram", "classes", "covariance", "contributions", "gates")
    parts, first = [], 0
    for rows in (slice(0, 13), slice(13, 30)):
        data = open_data([(x[rows], y[rows])], coupling.graph.inputs)
        parts.append(gather(coupling, data, names, first=first))
        first += len(x[rows])
    merged: Evidence = parts[0].merge(parts[1])
    whole = gather(coupling, open_data([(x, y)], coupling.graph.inputs), names)
    for a, b in zip(merged.groups, whole.groups, strict=True):
        one, two = a.views[0].statistics, b.views[0].statistics
        assert torch.allclose(one["moments"].m2, two["moments"].m2, rtol=1e-10)
        assert torch.equal(one["zeros"].off, two["zeros"].off)
        assert torch.equal(one["histogram"].counted().counts, two["histogram"].counted().counts)
        assert torch.allclose(one["classes"].counted().fired.m2, two["classes"].counted().fired.m2, rtol=1e-9)
        assert torch.allclose(one["covariance"].scatter, two["covariance"].scatter, rtol=1e-9)
        assert torch.allclose(one["contributions"].centred, two["contributions"].centred, rtol=1e-9)
        assert a.gates is not None
        assert b.gates is not None
        assert torch.allclose(a.gates.squared, b.gates.squared, rtol=1e-10)


def test_the_model_and_its_gradients_are_left_alone() -> None:
    model = Small()
    coupling = coupled(model, torch.randn(2, 1, 8, 8))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = open_data((torch.randn(20, 1, 8, 8), torch.zeros(20).long()), coupling.graph.inputs)
    gather(coupling, data, ("gates", "curvature", "zeros"))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_fixed_batch_takes_a_short_last_one() -> None:
    torch.manual_seed(0)
    model = Small().double().eval()
    x, y = torch.randn(11, 1, 8, 8).double(), torch.arange(11) % 3
    fixed = couple(simplify(trace(model, (x[:4],), static_batch=True)))
    free = couple(simplify(trace(model, (x[:4],))))
    assert not fixed.graph.dynamic_batch
    names = ("zeros", "moments", "gates")
    found = [
        gather(c, open_data([(x, y)], c.graph.inputs, fixed_batch=not c.graph.dynamic_batch), names).groups[0]
        for c in (fixed, free)
    ]
    zeros = [f.views[0].statistics["zeros"] for f in found]
    assert zeros[0].total == zeros[1].total == 11 * 36
    assert torch.equal(zeros[0].off, zeros[1].off)
    assert all(f.gates is not None and f.gates.count == 11 for f in found)
    assert torch.allclose(found[0].gates.squared, found[1].gates.squared)  # type: ignore[union-attr]


def test_writing_in_place_does_not_disturb_gradients() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            first = self.b(h)
            return first + self.c(h.relu_() if self.writes else F.relu(h))

    found = []
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(20) % 3
    for writes in (True, False):
        Late.writes = writes
        coupling = coupled(Late().double(), x[:2])
        found.append(gather(coupling, open_data([(x, y)], coupling.graph.inputs), ("gates",)).groups[0].gates)
    assert torch.allclose(found[0].squared, found[1].squared)


def test_progress_is_said_as_a_bar() -> None:
    lines: list[str] = []
    count = count_in_text(lines.append, "ranking channels", every_s=0)
    count(32, 64)
    count(64, 64)
    assert lines == [
        f"ranking channels [{'=' * 10}{' ' * 10}] 32 of 64, 0 s left",
        f"ranking channels [{'=' * 20}] 64 of 64",
    ]


def test_a_loss_must_fit_and_have_a_gradient() -> None:
    coupling, x, _ = small()
    data = open_data([x], coupling.graph.inputs)
    with pytest.raises(InputError, match="one number, or one for each of 30 samples"):
        gather(coupling, data, ("gates",), loss=lambda out, labels: out)
    with pytest.raises(InputError, match="no gradient"):
        gather(coupling, data, ("gates",), loss=lambda out, labels: out.detach().sum())
    wrong = open_data([(x, torch.full((30,), 9))], coupling.graph.inputs)
    with pytest.raises(InputError, match="up to 9 do not fit outputs of shape"):
        gather(coupling, wrong, ("gates",))
    with pytest.raises(InputError, match="has no labels"):
        gather(coupling, data, ("classes",))


# -- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[40], [1, 39], [7, 13, 1, 19], [1] * 40])
@pytest.mark.parametrize("waiting", [0, 10, 1000])
def test_histograms_are_exact_however_they_grow(sizes: list[int], waiting: int) -> None:
    generator = torch.Generator().manual_seed(len(sizes))
    scale = torch.tensor([1.0, 1e-6, 1e6, 0.0, 3.0, 1.0])[:, None]
    values = (
        torch.randn(40, 6, 1, generator=generator) * scale + torch.tensor([0, 5, 0, 2.5, -1e4, 0])[:, None]
    ).double()
    values[-1, 0] = 1e9  # an outlier at the end
    parts = [Histogram.of(seen(part)) for part in values.split(sizes)]
    found = functools.reduce(lambda one, other: one.merge(other, at_most=waiting), parts).counted()
    for c in range(6):
        v = values[:, c, 0].numpy()
        width = 2.0 ** next(
            e for e in range(-90, 90) if np.floor(v.max() / 2.0**e) - np.floor(v.min() / 2.0**e) < CELLS
        )
        wanted = np.unique(np.floor(v / width), return_counts=True)[1]
        counts = found.counts[c][found.counts[c] > 0].numpy()
        if c == 3:
            assert counts.tolist() == [40]  # a constant
        else:
            assert counts.tolist() == wanted.tolist()


def test_moments_hold_at_a_large_mean_in_any_order() -> None:
    values = torch.randn(60, 2, 5, generator=torch.Generator().manual_seed(0)).double() + 1e8
    exact = values.numpy().var((0, 2))
    for sizes in ([60], [1, 59], [20, 1, 39]):
        found = merge_statistics([ChannelMoments.of(seen(part)) for part in values.split(sizes)])
        assert found.variance.numpy() == pytest.approx(exact, rel=1e-6)
        assert found.count == 300


def test_the_share_of_zeros_is_not_a_mean_of_batches() -> None:
    values = torch.tensor([0.0, 0, 0, 1]).view(4, 1, 1)
    found = merge_statistics([Zeros.of(seen(part)) for part in values.split([3, 1])])
    assert (int(found.off), found.total) == (3, 4)


def test_covariance_merges_to_that_of_all() -> None:
    values = torch.randn(30, 4, 6, generator=torch.Generator().manual_seed(0)).double() + 100
    found = merge_statistics([Covariance.of(seen(part)) for part in values.split([3, 10, 17])])
    rows = values.transpose(1, 2).flatten(0, 1).numpy()
    assert (found.scatter / (found.count - 1)).numpy() == pytest.approx(np.cov(rows.T), rel=1e-9)


def test_positions_are_drawn_by_the_number_of_the_sample() -> None:
    whole = sample_positions(0, 10, 1000, at_most=7)
    assert torch.equal(whole[4:7], sample_positions(4, 3, 1000, at_most=7))
    assert whole.min() >= 0
    assert whole.max() < 1000
    assert len(torch.unique(sample_positions(0, 100, 1000, at_most=50))) > 950
    assert torch.equal(sample_positions(5, 2, 3, at_most=7), torch.arange(3).expand(2, 3))


# -- what readers sum -----------------------------------------------------------------------------------------------

READERS = {
    "conv2d": (nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=False), (4, 7, 7)),
    "dilated": (nn.Conv2d(4, 3, 3, dilation=2, bias=False), (4, 7, 7)),
    "same": (nn.Conv2d(4, 3, (3, 2), padding="same", bias=False), (4, 5, 5)),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2, bias=False), (4, 5, 5)),
    "conv1d": (nn.Conv1d(4, 3, 3, padding=1, bias=False), (4, 9)),
    "conv3d": (nn.Conv3d(4, 3, 3, padding=1, bias=False), (4, 3, 3, 3)),
    "transposed": (nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False), (4, 3, 3)),
    "linear": (nn.Linear(4, 3, bias=False), (5, 4)),
}


@pytest.mark.parametrize("name", READERS)
def test_contributions_are_what_each_channel_adds(name: str) -> None:
    """Against the reader run on one channel at a time, at all positions."""
    torch.manual_seed(0)
    reader, shape = READERS[name]
    first = {3: nn.Conv2d, 2: nn.Conv1d, 4: nn.Conv3d}[len(shape)](2, 4, 1) if name != "linear" else nn.Linear(2, 4)
    model = nn.Sequential(first, nn.ReLU(), reader, nn.Flatten(), nn.LazyLinear(2)).double().eval()
    x = torch.randn(5, *((2, *shape[1:]) if name != "linear" else (shape[0], 2))).double()
    model(x)
    coupling = coupled(model, x[:2])
    data = open_data([x], coupling.graph.inputs)
    found = gather(coupling, data, ("contributions",), positions=10**6).groups[0].views
    with torch.no_grad():
        h = model[:2](x)
        axis = 2 if name == "linear" else 1
        alone = []
        for c in range(4):
            mask = torch.zeros(4).double()
            mask[c] = 1
            alone.append(reader(h * mask.view([-1 if a == axis else 1 for a in range(h.dim())])).flatten())
    gram = torch.stack(alone) @ torch.stack(alone).T
    assert torch.allclose(_per_channel(gram, coupling), found[0].statistics["contributions"].gram, rtol=1e-9)


def _per_channel(gram: Tensor, coupling: Coupling) -> Tensor:
    """A grouped convolution ties channels of its groups: their contributions add up."""
    width = coupling.groups[0].width
    fold = torch.eye(width).double().repeat(1, 4 // width)
    return fold @ gram @ fold.T


def test_attention_scores_are_summed_one_channel_at_a_time() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)

    model = Scores().double()
    x = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    coupling = coupled(model, x[:2])
    views = gather(coupling, open_data([x], coupling.graph.inputs), ("contributions",)).groups[0].views
    with torch.no_grad():
        added = torch.einsum("btc,bsc->cbts", model.q(x), model.k(x)).flatten(1)
    for view in views:
        assert torch.allclose(view.statistics["contributions"].gram, added @ added.T, rtol=1e-9)


def test_two_readers_of_one_tensor_are_one_place() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(self.a(x))
            return self.b(h), self.c(h)

    coupling = coupled(Fork(), torch.randn(2, 3))
    (place,) = find_read_sites(coupling)
    assert [w.shape for w in place.weights] == [(5, 2), (5, 4)]
    found = gather(coupling, open_data([torch.randn(20, 3)], coupling.graph.inputs), ("correlations",)).groups[0]
    assert [r.shape for r in found.views[0].statistics["correlations"].absolute()] == [(5, 1, 2), (5, 1, 4)]


def test_every_statistic_has_a_row() -> None:
    assert all(hasattr(kind, "of") and hasattr(kind, "merge") and kind.__doc__ for kind in STATISTICS.values())
    assert micronets.NETS
    assert all(a != b for a, b in itertools.combinations(STATISTICS.values(), 2))


def test_graph_type_is_what_places_take() -> None:
    assert isinstance(small()[0].graph, Graph)


@pytest.mark.parametrize("waiting", [0, 10, 1000])
def test_classes_are_the_same_however_long_samples_wait(waiting: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(40, 3, 5, generator=generator).double(), torch.arange(40) % 4
    labels[0] = 9  # a class of one sample, in the first batch only
    sizes = [3, 20, 1, 16]
    parts = [Classes.of(seen(x, y)) for x, y in zip(values.split(sizes), labels.split(sizes), strict=True)]
    found = functools.reduce(lambda one, other: one.merge(other, at_most=waiting), parts).counted()
    fire = values.amax(2)
    assert found.ids.tolist() == [0, 1, 2, 3, 9]
    for k, mean, m2 in zip(found.ids, found.fired.mean, found.fired.m2, strict=True):
        own = fire[labels == k]
        assert torch.allclose(mean, own.mean(0))
        assert torch.allclose(m2, (own - own.mean(0)).square().sum(0), atol=1e-12)
