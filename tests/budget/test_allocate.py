"""Budgets in what users pay for: the limit holds, nothing much is left of it, and what cannot be met is said."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from micronets import NETS
from micronets.compiled import coupling_of as micro_coupling
from slim_model.budget.allocations import ALLOCATIONS, allocation_of
from slim_model.budget.knapsack import solve_knapsack
from slim_model.budget.limit import plan_under_limit
from slim_model.budget.methods import Curve
from slim_model.budget.plan import Plan, rungs_of
from slim_model.cost.counted import CostModel
from slim_model.cost.prices import PRICES, read_target
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.errors import BudgetError, InputError
from slim_model.graph.trace import trace
from slim_model.recipe import Recipe
from slim_model.simplifying.simplify import simplify
from small_nets import Residual, images, trained

COUNTED = [name for name, price in PRICES.items() if price.of is not None]
FREE = [name for name, row in ALLOCATIONS.items() if name != "sensitivity" and not row.timed]


class Wide(nn.Module):
    """Layers of 48, 96 and 64 channels; the second makes most of the multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 96, 3, padding=1)
        self.c, self.d = nn.Conv2d(96, 64, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))).mean((2, 3)))


@functools.cache
def coupling_of(net: type[nn.Module]) -> Coupling:
    return couple(simplify(trace(trained(net()), (images(),))))


def scores_of(coupling: Coupling, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(group.width, generator=generator, dtype=torch.float64) + 0.5 for group in coupling.groups]


def counted(coupling: Coupling, name: str) -> Callable[[np.ndarray | None], float]:
    price = PRICES[name]
    assert price.of is not None
    return functools.partial(price.of, CostModel(coupling))


def met(
    coupling: Coupling, name: str, share: float, *, allocation: str = "greedy", **options: object
) -> tuple[Plan, float]:
    """The plan, and what it costs as a share of the limit."""
    of = counted(coupling, name)
    limit = share * of(None)
    plan = plan_under_limit(
        coupling, scores_of(coupling), PRICES[name], of, limit, allocation=allocation_of(allocation), **options
    )  # type: ignore[arg-type]
    return plan, of(plan.keep) / limit


@pytest.mark.parametrize("allocation", ["uniform", "greedy", "knapsack", "product"])
def test_a_price_may_be_nothing(allocation: str) -> None:
    """A latency that is a line through two measured plans is 0, or less, for a plan far below both. Channels still come
    back at the limit; the search divided by 0."""
    coupling = coupling_of(Wide)
    macs = counted(coupling, "macs")
    limit = 0.5 * macs(None)

    def predicted(keep: np.ndarray) -> float:
        return max(0.0, macs(keep) - limit)

    row = allocation_of(allocation)
    plan = plan_under_limit(
        coupling, scores_of(coupling), PRICES["latency"], predicted, 0.0, allocation=row, multiple_of=8
    )
    assert 0.9 * limit <= macs(plan.keep) <= limit


def test_narrower_layers_that_take_longer() -> None:
    """As some widths of some machines do: one block in each group is fast, and whatever else is narrower is not. The
    search went on for ever."""
    coupling, calls = coupling_of(Wide), 0

    def ms(keep: np.ndarray) -> float:
        nonlocal calls
        calls += 1
        assert calls < 20_000, "it does not end"
        widths = {int(keep[group.channels].sum()) for group in coupling.groups}
        return 5.0 if widths == {16} else 10.0 if keep.all() else 9.0

    plan = plan_under_limit(
        coupling, scores_of(coupling), PRICES["macs"], ms, 8.0, allocation=allocation_of("uniform"), multiple_of=16
    )
    assert ms(plan.keep) == 5


@pytest.mark.parametrize("allocation", FREE)
@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("share", [0.3, 0.62, 0.9])
@pytest.mark.parametrize("block", [1, 16])
def test_a_limit_holds_and_is_used(name: str, allocation: str, share: float, block: int) -> None:
    coupling = coupling_of(Wide)
    _, used = met(coupling, name, share, allocation=allocation, multiple_of=block)
    assert 0.98 <= used <= 1


@pytest.mark.parametrize("name", [name for name in NETS if "packed" not in name])
def test_a_limit_holds_on_every_topology(name: str) -> None:
    """Where it can be met at all; no axis is left empty."""
    coupling = micro_coupling(name)
    for allocation in ("uniform", "greedy"):
        with contextlib.suppress(BudgetError):
            plan, used = met(coupling, "params", 0.7, allocation=allocation)
            assert used <= 1
            assert all(after >= 1 for _, after in plan.widths)


@given(share=st.floats(0.12, 0.95), seed=st.integers(0, 5), allocation=st.sampled_from(FREE))
def test_any_share(share: float, seed: int, allocation: str) -> None:
    coupling = coupling_of(Wide)
    of = counted(coupling, "macs")
    limit = share * of(None)
    plan = plan_under_limit(
        coupling,
        scores_of(coupling, seed),
        PRICES["macs"],
        of,
        limit,
        allocation=allocation_of(allocation),
        multiple_of=8,
    )
    assert 0.98 <= of(plan.keep) / limit <= 1


def test_widths_suit_the_machine_where_the_limit_lets_them() -> None:
    """Some take up what blocks leave."""
    coupling = coupling_of(Wide)
    plan, _ = met(coupling, "macs", 0.5, allocation="uniform", multiple_of=16)
    odd = [n for group, (_, n) in zip(coupling.groups, plan.widths, strict=True) if n not in rungs_of(group, 16)]
    assert len(odd) < len(plan.widths)


def test_what_is_kept_is_the_best_of_each_group() -> None:
    coupling = coupling_of(Wide)
    scores = scores_of(coupling)
    plan, _ = met(coupling, "macs", 0.4, allocation="greedy")
    for group, score in zip(coupling.groups, scores, strict=True):
        kept = torch.from_numpy(plan.keep[group.channels])
        assert kept.all() or score[kept].min() > score[~kept].max()


# -- which layers give ----------------------------------------------------------------------------------------------


def widths(allocation: str, share: float = 0.5, scores: list[Tensor] | None = None, **options: object) -> list[int]:
    coupling = coupling_of(Wide)
    of = counted(coupling, "macs")
    given = scores_of(coupling) if scores is None else scores
    plan = plan_under_limit(
        coupling, given, PRICES["macs"], of, share * of(None), allocation=allocation_of(allocation), **options
    )  # type: ignore[arg-type]
    return [after for _, after in plan.widths]


def flat(*sizes: float) -> list[Tensor]:
    """Scores that rise a little in each group, the groups of these sizes."""
    pairs = zip((48, 96, 64), sizes, strict=True)
    return [size * torch.linspace(0.9, 1.1, width, dtype=torch.float64) for width, size in pairs]


def test_uniform_takes_the_same_share_of_each() -> None:
    after = widths("uniform")
    shares = [n / full for n, full in zip(after, (48, 96, 64), strict=True)]
    assert max(shares) - min(shares) < 0.05


def test_global_and_greedy_take_where_scores_are_low() -> None:
    scores = flat(1, 1, 1)
    scores[2][:48] = torch.linspace(1e-6, 2e-6, 48, dtype=torch.float64)  # three quarters of c are next to nothing
    assert widths("global", 0.9, scores)[2] <= 18
    assert widths("greedy:floor=0", 0.9, scores)[2] <= 24


def test_greedy_takes_what_saves_most_where_scores_are_alike() -> None:
    """A channel of b saves what c reads and what it costs itself, over 3x3 of 48; one of c next to nothing."""
    after = widths("greedy", 0.6, flat(1, 1, 1))
    assert after[2] == 64
    assert after[0] + after[1] < 48 + 96


def test_a_floor_is_kept_where_the_limit_lets_it() -> None:
    for allocation in ("greedy:floor=0.25", "global:floor=0.25", "knapsack:floor=0.25"):
        assert all(n >= full / 4 for n, full in zip(widths(allocation, 0.3), (48, 96, 64), strict=True))


def test_normalisation_decides_between_groups() -> None:
    """As they are, the scores of c are a hundredth of the others'; next to their own mean they are not."""
    scores = flat(1, 1, 0.01)
    assert widths("global:normalise=none,floor=0.1", 0.9, scores)[2] < 20
    assert widths("global:normalise=mean,floor=0.1", 0.9, scores)[2] > 55
    lamp = widths("global:normalise=lamp", 0.6, scores)
    assert lamp == widths("global:normalise=lamp", 0.6, flat(1, 1, 100))


def test_energy_starts_with_what_draws_most() -> None:
    """b alone: whatever else goes draws less."""
    after = widths("energy", 0.97, flat(1, 1, 1))
    assert after[1] < 96
    assert after[2] == 64


def test_latency_spends_the_multiply_adds_where_they_are_fast() -> None:
    """A machine on which the first layer alone takes time."""
    coupling = coupling_of(Wide)
    first, second, _ = (group.channels for group in coupling.groups)
    alike = flat(1.0, 1.0, 1.0)

    def at(slow: np.ndarray) -> list[int]:
        return widths("latency", scores=alike, latency=lambda keep: 10.0 + float(keep[slow].sum()))

    assert at(first)[0] < 24 < 48 == at(second)[0]
    assert at(second)[1] < 60 < 96 == at(first)[1]


def test_latency_goes_below_a_block_last() -> None:
    """The first layer alone takes time: it goes down to about a block, and further where the limit needs it."""
    first = coupling_of(Wide).groups[0].channels
    slow = {"scores": flat(1.0, 1.0, 1.0), "latency": lambda keep: 10.0 + float(keep[first].sum()), "multiple_of": 16}
    assert [16 <= widths("latency", share, **slow)[0] < 24 for share in (0.5, 0.1)] == [True, True]
    assert widths("latency", 0.03, **slow)[0] < 16


def test_sensitivity_spares_what_is_sensitive() -> None:
    """By the scan, a loses much at once, b and c nothing until half is gone."""
    shares = np.linspace(0, 1, 11)
    curves: list[Curve] = [(shares, shares * 100), *[(shares, np.maximum(0, shares - 0.5))] * 2]
    after = widths("sensitivity", 0.45, curves=curves)
    assert after[0] > 40
    assert after[1] < 60


def test_isomorphic_gives_every_class_the_same_ratio() -> None:
    """Residual streams are classes of their own: high scores there do not spare them."""
    coupling = coupling_of(Residual)
    of = counted(coupling, "channels")
    scores = [score * (100 if i == 0 else 1) for i, score in enumerate(scores_of(coupling))]
    plan = plan_under_limit(
        coupling,
        scores,
        PRICES["channels"],
        of,
        0.5 * of(None),
        allocation=allocation_of("isomorphic:normalise=none"),
        multiple_of=1,
    )
    assert all(after < before for before, after in plan.widths)


# -- the knapsack ---------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_knapsack_is_as_good_as_trying_all(data: st.DataObject) -> None:
    """Up to what a bin rounds down: it may be asked to save 1 % more than it must."""
    number = st.integers(0, 40)
    groups = data.draw(st.lists(st.lists(st.tuples(number, number), min_size=1, max_size=3), min_size=1, max_size=4))
    saved = [np.array([0.0, *(float(s) for s, _ in group)]) for group in groups]
    lost = [np.array([0.0, *(float(c) for _, c in group)]) for group in groups]
    most = sum(s.max() for s in saved)
    needed = data.draw(st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.9, 1.0])) * most
    picked = solve_knapsack(saved, lost, needed)
    reached = sum(s[i] for s, i in zip(saved, picked, strict=True))
    cost = sum(c[i] for c, i in zip(lost, picked, strict=True))
    options = np.array(np.meshgrid(*(np.arange(len(s)) for s in saved))).reshape(len(saved), -1).T
    totals = [(sum(s[i] for s, i in zip(saved, o, strict=True)), sum(c[i] for c, i in zip(lost, o, strict=True)))
              for o in options]  # fmt: skip
    assert reached >= 0.99 * needed - 1e-9
    assert cost <= min(c for s, c in totals if s >= min(most, 1.02 * needed) - 1e-9) + 1e-9


# -- what cannot be met, and what is not understood -----------------------------------------------------------------


def test_the_least_that_can_be_reached_is_said() -> None:
    coupling = coupling_of(Wide)
    of = counted(coupling, "macs")
    keep = coupling.keep_all()
    for group in coupling.groups:
        keep[group.channels[1:]] = False
    least = PRICES["macs"].say(of(keep))
    with pytest.raises(BudgetError, match=rf"macs cannot come down to 10: .*it is {least} of"):
        plan_under_limit(coupling, scores_of(coupling), PRICES["macs"], of, 10.0)


def test_a_limit_that_is_met_already() -> None:
    coupling = coupling_of(Wide)
    of = counted(coupling, "params")
    with pytest.raises(BudgetError, match=r"params is 0\.0498 M as it is, no more than the 9\.00 M allowed"):
        plan_under_limit(coupling, scores_of(coupling), PRICES["params"], of, 9e6)


@pytest.mark.parametrize(
    ("text", "name", "amount"),
    [
        ("macs=1.0G", "macs", 1e9),
        ("params=2M", "params", 2e6),
        ("bytes=5MB", "bytes", 5e6),
        ("bytes=700kb", "bytes", 7e5),
        ("latency=8ms", "latency", 8),
        ("latency=250us", "latency", 0.25),
        (" latency = 0.01s ", "latency", 10),
        ("channels=100", "channels", 100),
        ("energy=2.5e9", "energy", 2.5e9),
    ],
)
def test_targets(text: str, name: str, amount: float) -> None:
    price, found = read_target(text)
    assert price.name == name
    assert found == pytest.approx(amount)


@pytest.mark.parametrize(
    "text", ["macs", "macs=", "macs=0", "macs=-1", "speed=3", "latency=8MB", "bytes=5m", "macs=1x"]
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"is not like latency=8ms, macs=1\.0G"):
        read_target(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"of": "speed"}, "there is no budget of 'speed'"),
        ({"of": "macs", "target": "params=2M"}, "limit different things"),
        ({"allocate": "fair"}, "no allocation is called 'fair'"),
        ({"allocate": "greedy:floor=x"}, r"floor=x is not like floor=0\.1"),
        ({"allocate": "greedy:normalise=max"}, "normalise=max is not mean, lamp or none"),
        ({"allocate": "uniform:floor=1"}, "it has none"),
        ({"allocate": "sensitivity"}, "measures on data: add --data"),
        ({"allocate": "damage:floor=0.1"}, "'damage' measures on data: add --data"),
        ({"of": "macs", "engine": "torch-pruning"}, "takes only a ratio of channels"),
        ({"of": "macs", "attention": "both"}, "takes only a ratio of channels"),
    ],
)
def test_recipes_that_are_refused_at_once(options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Recipe.of(**options)  # type: ignore[arg-type]


def test_the_options_of_an_allocation() -> None:
    assert dict(allocation_of("greedy:normalise=lamp,floor=0.2").options) == {"normalise": "lamp", "floor": 0.2}
