"""A stage that breaks its promise is caught at its end, by name, and not three stages later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from slim_model.budget import choose_plan as choosing
from slim_model.budget.choose_plan import choose_plan
from slim_model.budget.goal import ChosenPlan, Goal, Task
from slim_model.budget.options import BudgetOptions
from slim_model.budget.plan import Plan, plan_of
from slim_model.coupling import couple as coupling_of
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling, Group, Slice
from slim_model.cutting import shrink_graph
from slim_model.cutting.shrink_graph import shrink
from slim_model.errors import InternalError
from slim_model.graph.graph import Graph
from slim_model.graph.promises import same_sizes, whole
from slim_model.graph.trace import trace
from slim_model.simplifying import simplify as simplifying
from slim_model.simplifying.simplify import simplify
from small_nets import Residual, images


def traced() -> Graph:
    return trace(Residual().eval(), (images(),))


def coupled() -> Coupling:
    return couple(simplify(traced()))


def test_what_is_said_of_a_fault() -> None:
    graph = traced()
    with pytest.raises(
        InternalError, match=r"a fault of slim-model in 'trace': 1 inputs are read, and 0 are given\. No f"
    ):
        whole(dataclasses.replace(graph, inputs=()), "trace")


# -- graphs ---------------------------------------------------------------------------------------------------------


def without_a_tensor(graph: Graph) -> Graph:
    return graph.with_tensors({name: t for name, t in graph.tensors.items() if name != "stem.weight"})


def with_a_smaller_one(graph: Graph) -> Graph:
    return graph.with_tensors(graph.tensors | {"stem.weight": graph.tensors["stem.weight"][1:]})


def out_of_order(graph: Graph) -> Graph:
    graph = graph.copy()
    called = [node for node in graph.nodes if node.op == "call_function"]
    called[0].append(called[2])
    return graph


@pytest.mark.parametrize("broken", [without_a_tensor, with_a_smaller_one, out_of_order])
def test_a_graph_that_is_not_whole(broken: Callable[[Graph], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the step of simplify that has gone wrong leaves it."""
    graph = traced()
    assert whole(graph, "trace") is graph
    monkeypatch.setattr(simplifying, "fold_weights", broken)
    with pytest.raises(InternalError, match="simplify"):
        simplify(graph)


@pytest.mark.parametrize("broken", [without_a_tensor, with_a_smaller_one])
def test_other_values_that_have_other_sizes(broken: Callable[[Graph], Graph]) -> None:
    graph = traced()
    changed = graph.with_tensors({name: tensor + 0 for name, tensor in graph.tensors.items()})
    assert same_sizes(changed, graph, "recover") is changed
    with pytest.raises(InternalError, match="recover"):
        same_sizes(broken(graph), graph, "recover")
    with pytest.raises(InternalError, match="float64"):
        same_sizes(graph.with_tensors({n: t.double() for n, t in graph.tensors.items()}), graph, "recover")


# -- couple ---------------------------------------------------------------------------------------------------------


def in_two_groups(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    return (*groups, groups[0])


def with_what_is_fixed(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    return (dataclasses.replace(groups[0], channels=np.append(groups[0].channels, 0)), *groups[1:])


def with_a_shorter_slice(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    first = groups[0].slices[0]
    cut = Slice(first.parameter, first.axis, first.channel[1:], first.role)
    return (dataclasses.replace(groups[0], slices=(cut,)), *groups[1:])


def with_a_channel_too_many(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    return (dataclasses.replace(groups[0], channels=groups[0].channels[:-1]), *groups[1:])


@pytest.mark.parametrize("broken", [in_two_groups, with_what_is_fixed, with_a_shorter_slice, with_a_channel_too_many])
def test_groups_that_are_none(broken: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = coupling_of._groups
    monkeypatch.setattr(coupling_of, "_groups", lambda *given: broken(made(*given)))
    with pytest.raises(InternalError, match="couple"):
        coupled()


def test_pins_that_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    made = coupling_of.find_components
    monkeypatch.setattr(coupling_of, "find_components", lambda labelled, fixed: made(labelled, []))
    with pytest.raises(InternalError, match="what is pinned may go"):
        coupled()


# -- choose ---------------------------------------------------------------------------------------------------------


def with_an_empty_group(coupling: Coupling, plan: Plan) -> Plan:
    keep = plan.keep.copy()
    keep[coupling.groups[0].channels] = False
    return plan_of(coupling, keep)


PLANS: dict[str, Callable[[Coupling, Plan], Plan]] = {
    "of another coupling": lambda coupling, plan: Plan(plan.keep[:-1], plan.widths),
    "numbers": lambda coupling, plan: Plan(plan.keep.astype(int), plan.widths),
    "without what is fixed": lambda coupling, plan: Plan(plan.keep & (np.arange(len(plan.keep)) > 0), plan.widths),
    "with other widths": lambda coupling, plan: Plan(plan.keep, ((16, 15), *plan.widths[1:])),
    "with an empty group": with_an_empty_group,
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_that_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coupling = coupled()
    plan = plan_of(coupling, coupling.keep_all())
    goal = Goal.of(BudgetOptions(), 1)
    task = Task(Residual(), coupling.graph, coupling, [torch.zeros(g.width) for g in coupling.groups], goal)
    for made in (plan, PLANS[name](coupling, plan)):
        monkeypatch.setitem(choosing.ENGINES, goal.engine, lambda task, made=made: ChosenPlan(made))
        if made is plan:
            assert choose_plan(task).plan is plan
        else:
            with pytest.raises(InternalError, match=f"engine {goal.engine}"):
                choose_plan(task)


# -- shrink ---------------------------------------------------------------------------------------------------------


def test_a_tensor_that_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling = coupled()
    keep = coupling.keep_all()
    keep[coupling.groups[0].channels[:2]] = False
    small, _ = shrink(coupling, keep)
    assert sum(t.numel() for t in small.tensors.values()) < sum(t.numel() for t in coupling.graph.tensors.values())
    monkeypatch.setattr(shrink_graph, "_sliced", lambda coupling, cut, owner: coupling.graph.tensors[owner])
    with pytest.raises(InternalError, match=r"shrink.*are left of it"):
        shrink(coupling, keep)
