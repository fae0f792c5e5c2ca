"""The budget: how many channels of each layer stay for a ratio, and which."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slim_model.budget.plan import Plan, rungs_of
from slim_model.budget.ratio import nearest, plan_by_ratio
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling, Group, Slice
from slim_model.cutting.cut import cut_of
from slim_model.errors import BudgetError
from slim_model.graph.trace import trace
from slim_model.labels.values import tensors_in
from small_nets import OnlyOutputs, Residual, images, trained

# -- networks whose channels are counted by hand --------------------------------------------------------------------


class Chain(nn.Module):
    """Three layers of 10, 20 and 40 channels that are free, one group each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 20, 3, padding=1)
        self.c, self.d = nn.Conv2d(20, 40, 3, padding=1), nn.Conv2d(40, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))


class Halves(nn.Module):
    """Channels 0..3 of one layer go one way, 4..7 another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.left(x[:, :4]) + self.right(x[:, 4:])


@functools.cache
def coupling_of(net: type[nn.Module]) -> Coupling:
    return couple(trace(trained(net()), (images(),)))


def scores_of(coupling: Coupling, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(group.width, generator=generator) + 0.5 for group in coupling.groups]


def kept(coupling: Coupling, plan: Plan) -> list[list[int]]:
    """Which channels of each group stay."""
    return [np.flatnonzero(plan.keep[group.channels]).tolist() for group in coupling.groups]


# -- one ratio in every layer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "after"),
    [
        (0.25, (8, 15, 30)),  # 7.5 is as near to 7 as to 8
        (0.5, (5, 10, 20)),
        (0.7, (3, 6, 12)),
        (0.1, (9, 18, 36)),
        (0.99, (1, 1, 1)),
    ],
)
def test_widths(ratio: float, after: tuple[int, ...]) -> None:
    coupling = coupling_of(Chain)
    plan = plan_by_ratio(coupling, scores_of(coupling), ratio=ratio)
    assert plan.widths == tuple(zip((10, 20, 40), after, strict=True))


def test_the_best_stay() -> None:
    coupling = coupling_of(Chain)
    scores = scores_of(coupling)
    for chosen, score in zip(kept(coupling, plan_by_ratio(coupling, scores, ratio=0.5)), scores, strict=True):
        gone = np.setdiff1d(np.arange(len(score)), chosen)
        assert score[chosen].min() > score[gone].max()


def test_among_equals_the_first_stay() -> None:
    coupling = coupling_of(Chain)
    equal = [torch.ones(group.width) for group in coupling.groups]
    assert kept(coupling, plan_by_ratio(coupling, equal, ratio=0.7)) == [[*range(3)], [*range(6)], [*range(12)]]


def test_what_is_fixed_and_what_nobody_ranks_stays() -> None:
    coupling = coupling_of(Residual)
    plan = plan_by_ratio(coupling, scores_of(coupling), ratio=0.7)
    ranked = np.concatenate([group.channels for group in coupling.groups])
    assert plan.keep[0]
    assert plan.keep[np.setdiff1d(np.arange(len(plan.keep)), ranked)].all()


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("net", [Chain, Halves, Residual])
def test_no_axis_is_emptied(net: type[nn.Module], scope: str, ratio: float) -> None:
    """Not even where the worst channels are all on one side of a split."""
    coupling = coupling_of(net)
    rising = [torch.arange(1.0, group.width + 1) for group in coupling.groups]
    cut = cut_of(coupling, plan_by_ratio(coupling, rising, ratio=ratio, one_ranking=scope == "global").keep)
    for value in tensors_in(coupling.labelled.values.values()):
        for axis, size in zip(value.axes, value.shape, strict=True):
            assert axis is None or cut.count(axis, size) >= 1


def test_an_empty_half_gets_its_best_channel_back() -> None:
    """0..7 rising at 0.5 keeps 4..7; the half 0..3 would be empty, and 3 is its best."""
    coupling = coupling_of(Halves)
    plan = plan_by_ratio(coupling, [torch.arange(8.0)], ratio=0.5)
    assert kept(coupling, plan) == [[3, 4, 5, 6, 7]]
    assert plan.widths == ((8, 5),)


# -- widths in blocks -----------------------------------------------------------------------------------------------


def rounded(target: float, width: int, span: int, block: int) -> int:
    channel = np.repeat(np.arange(width), span)
    group = Group("layer", np.arange(width), (Slice("layer.weight", 0, channel, "makes"),), "")
    return nearest(rungs_of(group, block), target)


@pytest.mark.parametrize(
    ("target", "width", "span", "block", "count"),
    [
        (32.0, 64, 1, 8, 32),
        (44.8, 64, 1, 16, 48),
        (19.2, 64, 1, 16, 16),
        (19.2, 64, 1, 1, 19),
        (44.8, 64, 1, 8, 48),
        (12.0, 24, 1, 16, 16),  # narrower than the block: blocks of 8, and 12 is as near to 8 as to 16
        (8.0, 16, 1, 16, 8),
        (4.8, 16, 1, 16, 4),
        (1.2, 4, 1, 16, 1),
        (0.3, 3, 1, 16, 1),
        (9.0, 10, 1, 8, 10),
        (8.9, 10, 1, 8, 8),
        (6.0, 12, 64, 16, 6),  # 64 positions a channel: every count is a multiple
        (7.3, 12, 4, 16, 8),  # 4 positions: 4 channels make a block
        (2.4, 12, 4, 16, 2),  # 9.6 positions: blocks of 8 are 2 channels
        (5.0, 12, 3, 12, 4),  # 3 positions: 4 channels make 12
        (4.0, 8, 3, 8, 4),  # a GRU of 8 units: none below 8 makes a width that is a multiple of 8, so half of it counts
        (2.4, 8, 3, 8, 2),
        (6.0, 12, 3, 16, 8),
        (4.8, 16, 49, 8, 4),  # pixels of 16 maps that are flattened
    ],
)
def test_rounding(target: float, width: int, span: int, block: int, count: int) -> None:
    assert rounded(target, width, span, block) == count


BLOCKS = st.sampled_from([1, 4, 8, 16])


@given(width=st.integers(2, 300), span=st.integers(1, 64), block=st.sampled_from([1, 2, 4, 6, 8, 12, 16, 32]))
def test_each_step_is_at_most_twice_the_one_below(width: int, span: int, block: int) -> None:
    """Whatever kind of layer it is: with half of its channels to go, none is left with a tenth."""
    channel = np.repeat(np.arange(width), span)
    rungs = rungs_of(Group("layer", np.arange(width), (Slice("layer.weight", 0, channel, "makes"),), ""), block)
    most = 2 if block & (block - 1) == 0 else 3  # blocks that are no powers of two are halved downwards
    assert all(high <= most * low for low, high in itertools.pairwise(rungs))


@given(width=st.integers(2, 300), ratio=st.floats(0.01, 0.99), block=BLOCKS)
def test_a_rounded_width_is_a_multiple_of_the_largest_block_that_fits(width: int, ratio: float, block: int) -> None:
    target = width * (1 - ratio)
    count = rounded(target, width, 1, block)
    fits = max(b for b in (1, 2, 4, 8, 16) if b <= max(1.0, min(block, target)))
    assert 1 <= count <= width
    assert count == width or count % fits == 0
    assert abs(count - target) <= max(fits / 2, 1)


def test_a_width_that_may_stay_is_nearer_than_a_block_far_below() -> None:
    assert rounded(24 * 0.99, 24, 1, 16) == 24


@pytest.mark.parametrize("block", [1, 8, 16])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_blocks_in_a_plan(ratio: float, block: int) -> None:
    coupling = coupling_of(Chain)
    plan = plan_by_ratio(coupling, scores_of(coupling), ratio=ratio, multiple_of=block)
    for before, after in plan.widths:
        assert after == rounded(before * (1 - ratio), before, 1, block)


# -- one ranking over all layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_global_ranking_removes_the_ratio_of_all(ratio: float, seed: int) -> None:
    coupling = coupling_of(Chain)
    plan = plan_by_ratio(coupling, scores_of(coupling, seed=seed), ratio=ratio, one_ranking=True)
    before, after = (sum(column) for column in zip(*plan.widths, strict=True))
    assert before == 70
    assert after == 70 - int(70 * ratio)


def test_a_global_ranking_takes_from_where_little_is_lost() -> None:
    """Layer a: 10 that matter. Layer b: 4 of 20 matter. Layer c: 38 of 40 matter. 18 of 70 go."""
    coupling = coupling_of(Chain)
    scores = [torch.full((group.width,), 1.0) for group in coupling.groups]
    scores[1][:16], scores[2][:2] = 0.01, 0.01
    for score in scores:
        score += torch.linspace(0, 1e-3, len(score))
    plan = plan_by_ratio(coupling, scores, ratio=18.5 / 70, one_ranking=True)
    assert plan.widths == ((10, 10), (20, 4), (40, 38))


def test_the_units_of_a_layer_do_not_matter_in_a_global_ranking() -> None:
    coupling = coupling_of(Chain)
    scores = scores_of(coupling)
    larger = [score * factor for score, factor in zip(scores, (1e-4, 1.0, 1e6), strict=True)]
    plans = [plan_by_ratio(coupling, each, ratio=0.5, one_ranking=True) for each in (scores, larger)]
    assert plans[0].widths == plans[1].widths


def test_a_global_ranking_leaves_each_layer_a_tenth() -> None:
    """Layer c has a few huge channels and 35 that are nothing beside their mean."""
    coupling = coupling_of(Chain)
    scores = [torch.ones(10), torch.ones(20), torch.full((40,), 1e-6)]
    scores[2][-1] = 1e6
    for score in scores:
        score += torch.linspace(0, 1e-3, len(score))
    plan = plan_by_ratio(coupling, scores, ratio=0.56, one_ranking=True)
    assert plan.widths == ((10, 10), (20, 20), (40, 4))


def test_equal_scores_in_a_global_ranking() -> None:
    coupling = coupling_of(Chain)
    plan = plan_by_ratio(coupling, [torch.ones(group.width) for group in coupling.groups], ratio=0.5, one_ranking=True)
    assert sum(after for _, after in plan.widths) == 35


def test_the_units_of_negative_scores_do_not_matter_either() -> None:
    """Higher is better, whatever the sign: a criterion may say minus the error that a removal costs."""
    coupling = coupling_of(Chain)
    scores = [-score for score in scores_of(coupling)]
    larger = [score * factor for score, factor in zip(scores, (1e-4, 1.0, 1e6), strict=True)]
    plans = [plan_by_ratio(coupling, each, ratio=0.5, one_ranking=True) for each in (scores, larger)]
    assert plans[0].widths == plans[1].widths


# -- what cannot be met ---------------------------------------------------------------------------------------------


def test_nothing_to_remove_names_what_is_pinned() -> None:
    with pytest.raises(BudgetError, match=r"nothing can be removed.*conv: it is an output of the model"):
        plan_by_ratio(coupling_of(OnlyOutputs), [], ratio=0.5)


def test_a_ratio_that_rounds_to_nothing() -> None:
    coupling = coupling_of(Chain)
    with pytest.raises(BudgetError, match=r"ratio 0\.01 removes no channel: the layers are too narrow for it\.$"):
        plan_by_ratio(coupling, scores_of(coupling), ratio=0.01)


def test_layers_that_are_too_narrow_for_the_block() -> None:
    coupling = coupling_of(Halves)
    with pytest.raises(BudgetError, match=r"ratio 0\.05 removes no channel.*rounded to 8; try --multiple-of 1"):
        plan_by_ratio(coupling, [torch.arange(8.0)], ratio=0.05, multiple_of=8)


def test_the_same_scores_give_the_same_plan() -> None:
    coupling = coupling_of(Residual)
    plans = [plan_by_ratio(coupling, scores_of(coupling), ratio=0.5, one_ranking=True, multiple_of=4) for _ in range(2)]
    assert np.array_equal(plans[0].keep, plans[1].keep)
